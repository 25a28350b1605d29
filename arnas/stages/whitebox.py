"""Attack one model, seeing all of it: clean accuracy, FGSM, PGD-20, PGD-100, AutoAttack."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from arnas import artifacts, runtime
from arnas.attacks.autoattack import target_classes
from arnas.checkpoints import CheckpointStore, Keeper
from arnas.config import Whitebox
from arnas.data import image_set
from arnas.evaluation import ladder
from arnas.evaluation.models import load_fitting
from arnas.evaluation.statistics import score
from arnas.evaluation.units import work
from arnas.evaluation.whitebox import ROBUST, WhiteboxEvaluation


def run(
    model: str | Path,
    images: str | Path,
    output: str | Path,
    settings: Whitebox,
    *,
    checkpoints: str | Path,
    device: str = "auto",
    gpus: int = 0,
) -> dict[str, Any]:
    """Evaluate a model on the test images under white-box attacks.

    Args:
        model: Model artifact; its best weights are attacked.
        images: Image set artifact, of the shape and number of classes that the model expects.
        output: Where the evaluation artifact goes: scores, outcome of every sample, examples.
        checkpoints: Folder of the work done so far; a run with the same inputs and settings goes on from there.
        device: auto, cpu, cuda, cuda:N or mps.
        gpus: GPUs that the task was promised; it is an error to see fewer.

    Returns:
        The artifact's `digest`, and the accuracy by attack.

    Raises:
        InvalidInput: An artifact is unusable, model and images do not fit, or AutoAttack is asked for on fewer than
            four classes.
    """
    artifacts.require_writable(output, Path(checkpoints) / "checkpoint")
    chosen = runtime.prepare(device, gpus)
    origin = runtime.Origin(chosen)
    test_images = image_set.load(images, chosen)
    network, body = load_fitting(model, test_images)
    if settings.autoattack_images:
        target_classes(len(test_images.classes))

    packages = ("space", "data", "attacks", "evaluation")
    key = runtime.key(
        "whitebox", chosen, packages, settings=settings.model_dump(), model=body["digest"], images=test_images.digest
    )
    with Keeper(CheckpointStore(checkpoints), key, "whitebox") as keeper:
        state = keeper.restore() or WhiteboxEvaluation.begin(test_images, settings)
        work("whitebox", WhiteboxEvaluation(network, test_images, settings, state).units(), state, [network], keeper)

    outcomes = dict(state["outcomes"])
    first = state["autoattack_first"]
    warnings = [*state["warnings"]]
    if len(first):
        outcomes["autoattack"] = first == ROBUST
        warnings += ladder.square_doubts(first)
    warnings += ladder.violations(outcomes)
    scores = {name: score(int(right.sum()), len(right)) for name, right in outcomes.items()}
    content = {
        "model": body["content"]["name"],
        "model_digest": body["digest"],
        "images": test_images.digest,
        "data": {
            "dataset": test_images.content["dataset"],
            "classes": test_images.classes,
            "shape": list(test_images.shape),
        },
        "settings": settings.model_dump(),
        "parameters": body["content"]["parameters"],
        "macs": body["content"]["macs"],
        "scores": scores,
        "warnings": warnings,
    }
    with artifacts.publish(output) as folder:
        folder.mkdir()
        save_file(outcomes | ({"autoattack_first": first} if len(first) else {}), folder / "outcomes.safetensors")
        save_file(_examples(test_images, state["examples"]), folder / "examples.safetensors")
        digest = artifacts.write(folder, "evaluation", content, origin.report())
    for warning in warnings:
        runtime.say("whitebox", f"warning: {warning}")
    return {"digest": digest} | {name: entry["accuracy"] for name, entry in scores.items()}


def _examples(images: image_set.ImageSet, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    pixels, labels = images.batch(images.splits["test"].cpu()[kept["places"]])
    return {
        "images": pixels.cpu(),
        "adversarial": kept["adversarial"],
        "labels": labels.cpu(),
        "clean_prediction": labels.cpu().clone(),  # only samples that are right when clean are attacked
        "adversarial_prediction": kept["prediction"],
    }
