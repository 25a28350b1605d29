"""Stage export: a model as files that others load, with the proof that they hold the same network."""

import copy
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arnas import artifacts, runtime
from arnas.attacks import PGD
from arnas.config import Export
from arnas.data import image_set
from arnas.data.image_set import ImageSet
from arnas.errors import InvalidInput
from arnas.evaluation.models import require_fit
from arnas.evaluation.statistics import score
from arnas.space import foreign
from arnas.space.classifier import Classifier
from arnas.space.network import build, load_model

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FORMATS = ("state", "program", "onnx")
WEIGHTS, DESCRIPTION, PROGRAM, ONNX = "weights.safetensors", "network.json", "program.pt2", "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the format onnx
LOGITS = 1e-4  # largest difference of logits that is rounding, relative to the largest logit (at least 1)
ROBUST = 0.01  # of robust accuracy, since attacks part ways where networks round differently


def run(
    model: str | Path,
    output: str | Path,
    settings: Export,
    *,
    images: str | Path,
    formats: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write a model in several formats, and stop unless each of them, loaded again, is the same network.

    The same means: predictions on test images and on PGD examples that were made on the model; logits, but for
    rounding; and of state and program, which have gradients, the robust accuracy under that PGD. All on the CPU.

    Args:
        model: Model artifact; its best weights are written.
        output: Folder to write. state: `weights.safetensors`, and `network.json` with what `arnas.space.network.build`
            makes the network of; program: `program.pt2` for torch.export.load; onnx: `model.onnx`, from `images`
            [N, C, H, W] in [0, 1] to `logits` [N, classes]. Program and onnx have no auxiliary head. Always
            `proof.json`: counts, differences, tolerances, digests, versions.
        settings: The attack, and the number of images compared.
        images: Image set artifact that the model fits.
        formats: Of state, program, onnx; all by default. An adopted program has no state.

    Returns:
        clean and robust accuracy of the model on the images compared, and the formats written.

    Raises:
        InvalidInput: The model does not fit the images, cannot be written in a format, is another network when it is
            loaded again, or packages for onnx are missing.
    """
    artifacts.require_writable(output)
    runtime.prepare("cpu")
    data = image_set.load(images)
    network, body = load_model(model)
    require_fit(body, model, data)
    chosen = _chosen(formats, body["content"]["network"])

    with artifacts.publish(output) as folder:
        folder.mkdir()
        reference = _Reference(network, data, settings, chosen)
        proof = {
            "schema": "arnas.export/1",
            "model": {"name": body["content"]["name"], "digest": body["digest"]},
            "images": data.digest,
            "settings": settings.model_dump(),
            "tolerances": {"logits": LOGITS, "robust": ROBUST},
            "scores": reference.scores,
            "formats": _write(folder, chosen, network, body["content"], Path(model), reference),
            "files": {file.name: artifacts.file_digest(file) for file in sorted(folder.iterdir())},
            "versions": runtime.versions()
            | {name: importlib.metadata.version(name) for name in PACKAGES if "onnx" in chosen},
        }
        (folder / "proof.json").write_text(json.dumps(proof, indent=1, allow_nan=False), encoding="utf-8")
    return {name: entry["accuracy"] for name, entry in reference.scores.items()} | {"formats": chosen}


def _chosen(formats: Sequence[str] | None, description: dict[str, Any]) -> list[str]:
    """The formats to write, in our order."""
    possible = FORMATS[1:] if description["architecture"] == "program" else FORMATS
    if impossible := [name for name in formats or () if name not in possible]:
        raise InvalidInput(f"This model has no format {impossible[0]}; choose among {', '.join(possible)}.")
    chosen = [name for name in possible if not formats or name in formats]
    missing = [name for name in PACKAGES if "onnx" in chosen and importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"The format onnx needs {', '.join(missing)}; pip install 'arnas[export]', or leave it out: --formats "
            "state program."
        )
    return chosen


class _Reference:
    """What the model itself says of test images, and of PGD examples made on it."""

    def __init__(self, network: nn.Module, data: ImageSet, settings: Export, formats: Sequence[str]):
        self._settings = settings
        self._attack = PGD(settings.epsilon, settings.step_size, settings.attack_steps)
        self._images, self._labels = data.batch(data.splits["test"][: settings.checked_images])
        batches = -(-len(self._labels) // settings.batch_size)
        rounds = 3 + sum(2 if name == "onnx" else 4 for name in formats)  # of passes, or of attacks
        self._progress = runtime.Progress("export", rounds * batches, unit="batch")
        self._adversarial = self._attacked(network)
        self._seen = {
            "clean": (self._images, self._logits(network, self._images)),
            "adversarial": (self._adversarial, self._logits(network, self._adversarial)),
        }
        self.scores = {
            name: score(self._right(logits), len(logits))
            for name, (_, logits) in zip(("clean", "robust"), self._seen.values(), strict=True)
        }

    def compare(self, name: str, network: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """How a reloaded network differs.

        Raises:
            InvalidInput: By more than rounding.
        """
        found: dict[str, Any] = {}
        for which, (images, expected) in self._seen.items():
            logits = self._logits(network, images)
            same = int((logits.argmax(1) == expected.argmax(1)).sum())
            difference = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
            found[which] = {"same_predictions": same, "total": len(images), "logit_difference": difference}
            if same < len(images) or not difference <= LOGITS:
                raise InvalidInput(
                    f"The format {name}, loaded again, is another network: it agrees on {same} of {len(images)} "
                    f"{which} images, and its logits differ by {difference:.2g} of the largest, where {LOGITS:g} is "
                    "rounding; nothing is written."
                )
        if isinstance(network, nn.Module):
            right = self._right(self._logits(network, self._attacked(network)))
            found["robust"] = score(right, len(self._labels))
            if abs(right - self.scores["robust"]["correct"]) > ROBUST * len(self._labels):
                raise InvalidInput(
                    f"The format {name}, loaded again, is another network: PGD leaves {right} of {len(self._labels)} "
                    f"images right, and {self.scores['robust']['correct']} of the model's; nothing is written."
                )
        return found

    def _attacked(self, network: nn.Module) -> Tensor:
        adversarial = []
        for number, (images, labels) in enumerate(self._batches(self._images, self._labels)):
            runtime.seed(self._settings.seed, "export", number)
            adversarial.append(self._attack(network, images, labels))
        return torch.cat(adversarial)

    @torch.no_grad()
    def _logits(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        return torch.cat([network(part) for (part,) in self._batches(images)])

    def _batches(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for parts in zip(*(tensor.split(self._settings.batch_size) for tensor in tensors), strict=True):
            yield parts
            self._progress.advance()

    def _right(self, logits: Tensor) -> int:
        return int((logits.argmax(1) == self._labels).sum())


def _write(
    folder: Path,
    formats: Sequence[str],
    network: nn.Module,
    content: dict[str, Any],
    model: Path,
    reference: _Reference,
) -> dict[str, Any]:
    """Write the formats, load each again and compare it; returns what the comparisons found."""
    found = {}
    if "state" in formats:
        found["state"] = reference.compare("state", _state(folder, network, content))
    if formats == ["state"]:
        return found
    program = _program(network, content["network"], model, content["data"]["shape"])
    if "program" in formats:
        torch.export.save(program, folder / PROGRAM)
        reloaded = foreign.Program(torch.export.load(folder / PROGRAM)).eval()
        found["program"] = reference.compare("program", reloaded)
    if "onnx" in formats:
        found["onnx"] = reference.compare("onnx", _onnx(folder, program))
    return found


def _state(folder: Path, network: nn.Module, content: dict[str, Any]) -> nn.Module:
    description, own = content["network"], network.network if isinstance(network, foreign.Foreign) else network
    about = {"name": content["name"], "network": description} | content["data"]
    (folder / DESCRIPTION).write_text(json.dumps(about, indent=1), encoding="utf-8")
    save_file(foreign.tensors(own), folder / WEIGHTS)

    described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["network"]
    made = foreign.construct(described["factory"]) if described["architecture"] == "factory" else build(described)
    foreign.fill(made, load_file(folder / WEIGHTS), folder / WEIGHTS)
    return made.eval()


def _program(network: nn.Module, description: dict[str, Any], model: Path, shape: Sequence[int]) -> "ExportedProgram":
    """The network as a program for batches of any size, without an auxiliary head or places of this machine."""
    from torch.export import Dim, export

    if description["architecture"] == "program":
        from arnas.space import programs

        return programs.read(model / foreign.PROGRAM)
    network = copy.deepcopy(network.network if isinstance(network, foreign.Foreign) else network)
    if hasattr(network, "auxiliary") and isinstance(network, Classifier):
        del network.auxiliary  # for training only
    try:
        program = export(network, (torch.zeros(2, *shape),), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # of whatever kind: the network may be code of others
        raise InvalidInput(
            f"torch.export cannot write {model} for batches of any size ({foreign.reason(error)}); does its code fix "
            "their size, as len(images) does and images.shape[0] does not?"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _onnx(folder: Path, program: "ExportedProgram") -> Callable[[Tensor], Tensor]:
    import onnxruntime

    torch.onnx.export(
        program,
        (),
        folder / ONNX,
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
    )
    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
