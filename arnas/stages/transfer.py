"""Stage transfer: the searched genotype trained and attacked on another data set."""

from pathlib import Path
from typing import Any

from arnas import artifacts
from arnas.config import Retrain, Whitebox
from arnas.stages import retrain, whitebox


def run(
    genotype: str | Path,
    images: str | Path,
    model_output: str | Path,
    evaluation_output: str | Path,
    recipe: Retrain,
    attacks: Whitebox,
    *,
    name: str = "searched",
    checkpoints: str | Path,
    device: str = "auto",
    gpus: int = 0,
) -> dict[str, Any]:
    """Retrain a genotype on another image set, and attack what comes out.

    Args:
        genotype: Genotype file.
        images: The other image set, as written by prepare.
        model_output, evaluation_output: Folders to write the model and its evaluation to.
        recipe, attacks: Settings of retrain and whitebox.
        name: Name of the model in tables.
        checkpoints, device, gpus: As in retrain and whitebox.

    Returns:
        What whitebox returns.
    """
    artifacts.require_writable(evaluation_output)
    placed: dict[str, Any] = {"checkpoints": checkpoints, "device": device, "gpus": gpus}
    retrain.run(images, model_output, recipe, name=name, genotype=genotype, **placed)
    return whitebox.run(model_output, images, evaluation_output, attacks, **placed)
