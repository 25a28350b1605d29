"""Stage retrain: train one network on an image set, adversarially."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from arnas import artifacts, proof, runtime
from arnas.checkpoints import CheckpointStore
from arnas.config import RIVALS, Retrain
from arnas.data import image_set
from arnas.errors import InvalidInput
from arnas.space import network as networks
from arnas.space.classifier import Classifier
from arnas.space.network import build
from arnas.space.size import count
from arnas.training import distributed
from arnas.training.loop import TrainingState, train


def run(
    images: str | Path,
    output: str | Path,
    settings: Retrain,
    *,
    name: str,
    genotype: str | Path | None = None,
    checkpoints: str | Path,
    device: str = "auto",
    gpus: int = 0,
    processes: int | None = None,
) -> dict[str, Any]:
    """Train a network; the epoch with the best PGD accuracy on the hold-out is kept beside the last.

    Args:
        images: Image set, as written by prepare.
        output: Folder to write the model to.
        settings: The recipe.
        name: Name of the model in tables.
        genotype: Genotype file, needed where `settings.architecture` is "searched".
        checkpoints: Folder or s3://BUCKET/PREFIX; unfinished work goes on from there, finished work is reused.
        device: auto, cpu, cuda, cuda:N or mps.
        gpus: GPUs that the task was promised; it is an error to see fewer.
        processes: Processes of this machine that share every batch, on GPUs each on its own (default: one for each
            promised GPU). The result is that of one process but for rounding. Where torchrun started this process, it
            is one of those that torchrun started.

    Returns:
        digest, parameters, macs, and hold-out accuracies of the best and the last epoch; nothing where torchrun
        started this process and it is not the first.

    Raises:
        InvalidInput: A setting does not fit the data, or an input or output cannot be used.
        Diverged: A loss is not finite.
        Interrupted: The process was asked to stop; its state is saved.
    """
    artifacts.require_writable(output)
    store = CheckpointStore.open(checkpoints)
    chosen, processes = runtime.prepare(device, gpus), processes or max(gpus, 1)
    runtime.require_precision(settings.precision, chosen)
    if processes > 1 and chosen.type == "mps":
        raise InvalidInput(f"{processes} processes cannot share the device mps; choose 1, or the device cpu.")
    if (processes > 1 or distributed.nodes() > 1) and not distributed.launched():
        again = partial(run, name=name, genotype=genotype, checkpoints=checkpoints, device=device, gpus=gpus)
        return distributed.launch(f"retrain {name}", processes, again, images, output, settings)
    with distributed.joined(chosen) as own:
        return _train(images, output, settings, name, genotype, store, own)


def _train(
    images: str | Path,
    output: str | Path,
    settings: Retrain,
    name: str,
    genotype: str | Path | None,
    store: CheckpointStore,
    device: torch.device,
) -> dict[str, Any]:
    origin = runtime.Origin(device)
    data = image_set.load(images, device)
    _check(data, settings)
    description = describe(settings, data, genotype)
    settings = settings.model_copy(update={key: description[key] for key in ("channels", "stem_stride")})
    if note := unused(settings):
        runtime.say(f"retrain {name}", note)
    proof.prove(device)
    packages = ("kernels", "space", "data", "attacks", "training")
    key = runtime.key(
        "retrain", device, packages, settings=settings.model_dump(), network=description, images=data.digest
    )
    runtime.seed(settings.seed, "retrain", "network")
    network = build(description)
    with distributed.SharedKeeper(store, key, f"retrain {name}") as keeper:
        progress = train(network, data, settings, keeper)
    if distributed.rank():
        return {}
    sizes = count(build(description), data.shape)
    selection = {"best": progress.best_epoch(settings), "last": progress.epochs[-1]}
    content = {
        "name": name,
        "network": description,
        "settings": settings.model_dump(),
        "images": data.digest,
        "data": {"dataset": data.content["dataset"], "classes": data.classes, "shape": data.shape},
        "selection": {
            which: {key: record[key] for key in ("epoch", "clean", "robust")} for which, record in selection.items()
        },
    } | sizes
    return summary({"digest": _write(output, network, progress, content, origin), "content": content})


def summary(body: dict[str, Any]) -> dict[str, Any]:
    """What `run` returns of a model, from the artifact's body (see `artifacts.read`)."""
    content = body["content"]
    accuracies = {
        f"{which}_{key}": record[key] for which, record in content["selection"].items() for key in ("clean", "robust")
    }
    return {"digest": body["digest"]} | {key: content[key] for key in ("name", "parameters", "macs")} | accuracies


def describe(settings: Retrain, data: image_set.ImageSet, genotype: str | Path | None) -> dict[str, Any]:
    """The description of the network to train, for `arnas.space.network.build`.

    Raises:
        InvalidInput: The genotype is missing or malformed, or an auxiliary head has no place.
    """
    architecture = settings.architecture
    if architecture == "searched":
        if genotype is None:
            raise InvalidInput(
                'architecture "searched" needs a genotype file; hand one over, or name arnas-cifar10 or resnet18.'
            )
        architecture = str(genotype)
    return networks.describe(
        architecture,
        data.shape,
        len(data.classes),
        channels=settings.channels,
        layers=settings.layers,
        layout=settings.layout,
        stem_stride=settings.stem_stride,
        auxiliary=settings.auxiliary_weight > 0,
        drop_path=settings.drop_path,
    )


def unused(settings: Retrain) -> str | None:
    """A sentence on what was set for genotypes and has no meaning for a hand-made network; None if nothing was."""
    if settings.architecture not in RIVALS:
        return None
    plain = Retrain()
    names = [name for name in ("layers", "layout", "auxiliary_weight", "drop_path") if getattr(settings, name)]
    changed = ", ".join(name for name in names if getattr(settings, name) != getattr(plain, name))
    if not changed:
        return None
    return f"{settings.architecture} has no cells and no auxiliary head; only genotypes heed {changed}."


def _check(data: image_set.ImageSet, settings: Retrain) -> None:
    available = len(data.splits["weights"]) + len(data.splits["architecture"])
    if settings.batch_size > available:
        raise InvalidInput(
            f"batch_size {settings.batch_size} is larger than the training set; at most {available} fit."
        )
    if settings.batch_size < distributed.size():
        raise InvalidInput(
            f"batch_size {settings.batch_size} is too small for {distributed.size()} processes, each of which takes "
            "a part of every batch; choose fewer processes."
        )
    image_set.require_fit(settings, data.shape, settings.cutout)


def _write(
    output: str | Path, network: Classifier, progress: TrainingState, content: dict[str, Any], origin: runtime.Origin
) -> str:
    with artifacts.publish(output) as folder:
        folder.mkdir()
        for which, state in (("best", progress.best), ("last", network.state_dict())):
            save_file({key: _plain(tensor) for key, tensor in state.items()}, folder / f"{which}.safetensors")
        (folder / "history.json").write_text(json.dumps({"epochs": progress.epochs}, allow_nan=False), encoding="utf-8")
        return artifacts.write(folder, "model", content, origin.report() | {"processes": distributed.size()})


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()
