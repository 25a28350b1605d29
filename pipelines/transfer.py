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
    """The pipeline as a part of another one, which hands the genotype over."""

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


def build(site: Placement) -> Any:
    """The pipeline by itself. A run has parameters and no artifacts, so the genotype is imported from where it lies."""
    part = nested(site)

    @pipeline("transfer", site)
    def transfer(
        genotype: str,
        preset: str = "cifar10",
        data: str = "",
        overrides: dict = {},
        checkpoints: str = "s3://mlpipeline/arnas/checkpoints",
        device: str = "auto",
        run: Mapping[str, Any] = {},
    ) -> Outputs:
        """Prepare the data set of the settings' section transfer; train and attack a genotype on it.

        Args:
            genotype: URI of a genotype, such as a run of the pipeline arnas shows it for its artifact genotype.
            preset: Name of a preset of settings (smoke, digits, cifar10-cpu, cifar10), or path of a YAML file.
            data: Where the other data set lies: a folder that the pods see, or s3://BUCKET/PREFIX; none where
                it comes with the library, or where the settings say it.
            overrides: Changes of the preset, such as {"transfer.train_limit": 1000}.
            checkpoints: Where unfinished work is kept: s3://BUCKET/PREFIX, or a folder that outlives the tasks.
            device: auto, cpu, cuda, cuda:N or mps.

        Returns:
            network: Trained model.
            evaluation: Its white-box evaluation.
        """
        imported = dsl.importer(artifact_uri=genotype, artifact_class=dsl.Artifact)
        transferred = part(
            genotype=imported.output,
            preset=preset,
            data=data,
            overrides=overrides,
            checkpoints=checkpoints,
            device=device,
            **run,
        )
        return Outputs(transferred.outputs["network"], transferred.outputs["evaluation"])

    return transfer
