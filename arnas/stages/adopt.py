"""Stage adopt: make a network that was trained elsewhere a model like ours, for the stages that attack and report."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from arnas import artifacts, runtime
from arnas.data import image_set
from arnas.errors import InvalidInput
from arnas.evaluation.models import predict
from arnas.space import foreign
from arnas.space.size import macs

SEEN = 250  # test images that are classified to tell whether network and images belong together


def run(
    output: str | Path,
    *,
    images: str | Path,
    model: str | None = None,
    state: str | Path | None = None,
    program: str | Path | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Write the model artifact of a network that was trained elsewhere, once it is known to classify the images.

    Give either `model` with `state`, or `program`. What is adopted takes images [N, C, H, W] in [0, 1], and returns
    logits [N, classes] in the order of the image set's classes; it normalises within, if it does.

    Args:
        output: Folder to write the model to.
        images: Image set, as written by prepare, that it is for.
        model: Factory `package.module:factory`, called without arguments. It is code: name what you would run. It must
            be importable wherever the artifact is read.
        state: Its state dict: safetensors, or what torch.save wrote of tensors alone; nothing else is unpickled.
        program: Program of torch.export (.pt2) in place of both, for batches of any size.
        name: Name of the model in tables (default: that of the factory, or of the program's file).

    Returns:
        digest, name, parameters, macs, and the clean accuracy on the first test images.

    Raises:
        InvalidInput: The network cannot be had from these files, does not fit the images, returns anything but logits,
            or gives attacks no gradient.
    """
    artifacts.require_writable(output)
    origin, data = runtime.Origin(), image_set.load(images)
    with artifacts.publish(output) as folder:
        folder.mkdir()
        description = _take(folder, model, state, program)
        network = foreign.restore(description, folder)
        source = str(program or model)
        pixels, labels = data.batch(data.splits["test"][:SEEN])
        if _examine(network, pixels[:8], len(data.classes), source):
            foreign.write_probe(network, data.shape, folder)
        clean = (predict(network, pixels) == labels).float().mean().item()
        if clean <= 2 / len(data.classes):
            runtime.say(
                "adopt",
                f"warning: {source} classifies {clean:.1%} of {len(labels)} test images as they are labelled, little "
                "more than guessing would; does it take pixels in [0, 1], and are its classes in this order: "
                f"{', '.join(data.classes)}?",
            )
        content = {
            "name": name or (Path(program).stem if program else source.partition(":")[2]),
            "network": description,
            "settings": {},
            "images": data.digest,
            "data": {"dataset": data.content["dataset"], "classes": data.classes, "shape": data.shape},
            "selection": None,  # it was not trained here
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "macs": macs(network, pixels[:2]),
        }
        digest = artifacts.write(folder, "model", content, origin.report())
    return {"digest": digest} | {key: content[key] for key in ("name", "parameters", "macs")} | {"clean": clean}


def _take(folder: Path, model: str | None, state: str | Path | None, program: str | Path | None) -> dict[str, Any]:
    """Put the network's file into the folder; returns its description."""
    if program is not None and model is None and state is None:
        if not Path(program).is_file():
            raise InvalidInput(f"There is no file {program}; name a program that torch.export.save wrote.")
        shutil.copyfile(program, folder / foreign.PROGRAM)
        return {"architecture": "program"}
    if model is None or state is None or program is not None:
        raise InvalidInput("Give a factory and its state dict (--model and --state), or a program (--program).")
    network = foreign.construct(model)
    foreign.fill(network, foreign.read_state(state), state)
    save_file(foreign.tensors(network), folder / foreign.WEIGHTS)
    return {"architecture": "factory", "factory": model}


def _examine(network: nn.Module, images: Tensor, classes: int, source: str) -> bool:
    """Refuse a network that breaks the contract; returns whether it says the same whenever it is asked.

    Raises:
        InvalidInput: It fails, returns something else, has no gradient, or mixes the images of a batch.
    """
    network.requires_grad_(False)
    images = images.clone().requires_grad_()
    shape = list(images.shape[1:])
    try:
        logits, again, alone = (network(part) for part in (images, images, images[:1]))
    except Exception as error:  # of whatever kind: it is code of others
        raise InvalidInput(f"{source} cannot classify images of shape {shape} ({foreign.reason(error)}).") from error
    if not isinstance(logits, Tensor):
        raise InvalidInput(f"{source} returns a {type(logits).__name__}; it must return logits alone, one tensor.")
    if list(logits.shape) != [len(images), classes] or not logits.is_floating_point():
        raise InvalidInput(
            f"{source} returns {logits.dtype} {list(logits.shape)} for {len(images)} images of shape {shape} in "
            f"{classes} classes; it must return float logits {[len(images), classes]}."
        )
    if not logits.isfinite().all():
        raise InvalidInput(f"{source} returns logits that are not finite, for pixels in [0, 1].")
    if not logits.requires_grad:
        raise InvalidInput(
            f"The logits of {source} do not depend on the pixels differentiably (torch.no_grad or detach within?), so "
            "that white-box attacks cannot follow them."
        )
    if not torch.equal(logits, again):
        runtime.say(
            "adopt",
            f"warning: {source} gives other logits for the same images each time; it is taken as random by design. "
            "AutoAttack has a version for that: rand.",
        )
        return False
    if not torch.allclose(logits[:1], alone, rtol=1e-3, atol=1e-3 * max(1.0, logits.abs().max().item())):
        raise InvalidInput(
            f"The logits of {source} for an image depend on the others in its batch, as in training mode; export it "
            "after model.eval()."
        )
    return True
