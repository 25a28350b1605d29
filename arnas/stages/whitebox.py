"""Attack one model, seeing all of it: clean accuracy, FGSM, PGD-20, PGD-100, AutoAttack; and corrupt its images."""

from pathlib import Path
from typing import Any

from torch import Tensor

from arnas import artifacts, proof, runtime
from arnas.attacks.autoattack import require_classes
from arnas.checkpoints import CheckpointStore, Keeper
from arnas.config import Whitebox
from arnas.data import image_set
from arnas.evaluation.models import load_fitting
from arnas.evaluation.outcome import Outcome
from arnas.evaluation.units import Shard, work
from arnas.evaluation.whitebox import WhiteboxEvaluation


def run(
    model: str | Path,
    images: str | Path,
    output: str | Path,
    settings: Whitebox,
    *,
    checkpoints: str | Path,
    device: str = "auto",
    gpus: int = 0,
    shard: str = "1/1",
) -> dict[str, Any]:
    """Evaluate a model on the test images under white-box attacks.

    Args:
        model: Model artifact; its best weights are attacked.
        images: Image set artifact, of the shape and number of classes that the model expects.
        output: Where the evaluation artifact goes: scores, the curve over epsilon, corruptions, checks of the
            evaluation itself, outcome of every sample, examples.
        checkpoints: Folder or s3://BUCKET/PREFIX of the work done so far; a run with the same inputs and settings goes
            on from there.
        device: auto, cpu, cuda, cuda:N or mps.
        gpus: GPUs that the task was promised; it is an error to see fewer.
        shard: Which share of the samples to attack, such as 2/4; stage merge puts the shards together.

    Returns:
        The artifact's `digest`; of all samples also the accuracy by attack and as `corrupted`, of a share `shard`.

    Raises:
        InvalidInput: An artifact is unusable, model and images do not fit, AutoAttack is asked for on fewer than four
            classes, or the shard is none.
    """
    artifacts.require_writable(output)
    store = CheckpointStore.open(checkpoints)
    share = Shard.parse(shard)
    chosen = runtime.prepare(device, gpus)
    origin = runtime.Origin(chosen)
    test_images = image_set.load(images, chosen)
    network, body = load_fitting(model, test_images)
    if settings.autoattack_images:
        require_classes(len(test_images.classes))

    proof.prove(chosen)
    packages = ("kernels", "space", "data", "attacks", "evaluation")
    inputs = {"settings": settings.model_dump(), "model": body["digest"], "images": test_images.digest}
    key = runtime.key("whitebox", chosen, packages, shard=str(share), **inputs)
    with Keeper(store, key, "whitebox") as keeper:
        state = keeper.restore() or WhiteboxEvaluation.begin(test_images, settings)
        units = WhiteboxEvaluation(network, test_images, settings, state).units(share)
        work("whitebox", units, state, [network], keeper)

    about = {
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
    }
    samples = state["outcomes"] | {f"{name}_first": first for name, first in state["first"].items()}
    samples["corruptions"] = state["corruptions"]
    outcome = Outcome(about, samples, _examples(test_images, state["examples"]), state["warnings"])
    if share.count > 1:
        return {"digest": outcome.write_shard(output, share, origin.report()), "shard": str(share)}
    return outcome.write(output, origin.report())


def _examples(images: image_set.ImageSet, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    pixels, labels = images.batch(images.splits["test"].cpu()[kept["places"]])
    return {
        "places": kept["places"],
        "images": pixels.cpu(),
        "adversarial": kept["adversarial"],
        "labels": labels.cpu(),
        "clean_prediction": labels.cpu().clone(),  # only samples that are right when clean are attacked
        "adversarial_prediction": kept["prediction"],
    }
