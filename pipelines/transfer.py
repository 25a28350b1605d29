"""Transfer: the searched architecture, retrained and attacked on another data set."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kfp import dsl

from pipelines.placement import Placement, pipeline
from pipelines.steps import Steps


class Outputs(NamedTuple):
    network: dsl.Model
    evaluation: dsl.Artifact


def nested(site: Placement) -> Any:
    """The pipeline as a part of another one, which hands the genotype over; the study of that name is another."""

    @pipeline("transfer", site)
    def transfer(
        genotype: dsl.Input[dsl.Artifact],
        preset: str,
        data: str,
        overrides: dict,
        checkpoints: str,
        device: str,
        run: Mapping[str, Any],
    ) -> Outputs:
        """Prepare the data set of the settings' section transfer; train and attack a genotype on it.

        Args:
            genotype: Genotype, as written by the derive component.
            preset: Name of a preset of settings, or path of a YAML file.
            data: Where the other data set lies; none where it comes with the library, or where the settings say it.
            overrides: Changes of the preset.
            checkpoints: Where unfinished work is kept.
            device: auto, cpu, cuda, cuda:N or mps.

        Returns:
            network: Trained model.
            evaluation: Its white-box evaluation.
        """
        steps = Steps(site, run, {"preset": preset, "overrides": overrides}, checkpoints, device)
        return Outputs(*steps.transfer(genotype, steps.prepare(data, "transfer")))

    return transfer
