"""Attack models without seeing them: examples transferred between all of them, and Square."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from arnas import artifacts, proof, runtime
from arnas.checkpoints import CheckpointStore, Keeper
from arnas.config import Blackbox
from arnas.data import image_set
from arnas.errors import InvalidInput
from arnas.evaluation.blackbox import BlackboxEvaluation
from arnas.evaluation.models import load_fitting
from arnas.evaluation.statistics import Score, score
from arnas.evaluation.units import work


def run(
    models: Sequence[str | Path],
    images: str | Path,
    output: str | Path,
    settings: Blackbox,
    *,
    checkpoints: str | Path,
    device: str = "auto",
    gpus: int = 0,
) -> dict[str, Any]:
    """Evaluate models on the test images under black-box attacks.

    Args:
        models: Model artifacts of different names; their best weights are used.
        images: Image set artifact, of the shape and number of classes that all models expect.
        output: Where the blackbox artifact goes: the matrix source by target, Square, outcome of every sample.
        checkpoints: Folder or s3://BUCKET/PREFIX of the work done so far; a run with the same inputs and settings goes
            on from there.
        device: auto, cpu, cuda, cuda:N or mps.
        gpus: GPUs that the task was promised; it is an error to see fewer.

    Returns:
        The artifact's `digest`, the accuracy by "source -> target", and by "square -> target".

    Raises:
        InvalidInput: An artifact is unusable, models and images do not fit, or two models have one name.
    """
    artifacts.require_writable(output)
    store = CheckpointStore.open(checkpoints)
    chosen = runtime.prepare(device, gpus)
    origin = runtime.Origin(chosen)
    test_images = image_set.load(images, chosen)
    loaded = [load_fitting(path, test_images) for path in models]
    names = [body["content"]["name"] for _, body in loaded]
    if not names or len(set(names)) < len(names):
        raise InvalidInput(f"blackbox needs models, each of its own name, but got {', '.join(names) or 'none'}.")
    networks = {body["content"]["name"]: network for network, body in loaded}
    digests = {body["content"]["name"]: body["digest"] for _, body in loaded}

    proof.prove(chosen)
    packages = ("kernels", "space", "data", "attacks", "evaluation")
    key = runtime.key(
        "blackbox",
        chosen,
        packages,
        settings=settings.model_dump(),
        models=[[name, digests[name]] for name in names],
        images=test_images.digest,
    )
    with Keeper(store, key, "blackbox") as keeper:
        state = keeper.restore() or BlackboxEvaluation.begin(names, test_images, settings)
        units = BlackboxEvaluation(networks, test_images, settings, state).units()
        work("blackbox", units, state, list(networks.values()), keeper)

    transfer = {source: {target: _score(state["transfer"][source][target]) for target in names} for source in names}
    square = {name: _score(state["square"][name]) for name in names if len(state["square"][name])}
    content = {
        "models": names,
        "settings": settings.model_dump(),
        "images": test_images.digest,
        "blackbox": transfer,
        "square": square,
        "model_digests": digests,
    }
    with artifacts.publish(output) as folder:
        folder.mkdir()
        save_file(_flat(state), folder / "outcomes.safetensors")
        digest = artifacts.write(folder, "blackbox", content, origin.report())
    figures = {f"{source} -> {target}": transfer[source][target]["accuracy"] for source in names for target in names}
    figures |= {f"square -> {name}": square[name]["accuracy"] for name in square}
    return {"digest": digest} | figures


def _score(right: Tensor) -> Score:
    return score(int(right.sum()), len(right))


def _flat(state: dict[str, Any]) -> dict[str, Tensor]:
    """bool [n] by `clean/MODEL`, `transfer/SOURCE/TARGET` and `square/MODEL`."""
    outcomes = {f"clean/{name}": right for name, right in state["clean"].items()}
    outcomes |= {f"transfer/{source}/{name}": r for source, row in state["transfer"].items() for name, r in row.items()}
    return outcomes | {f"square/{name}": right for name, right in state["square"].items() if len(right)}
