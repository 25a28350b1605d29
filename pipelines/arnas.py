"""The whole method as one pipeline: prepare, search, derive, retrain, attack, transfer, report."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kfp import dsl

from pipelines.placement import Placement, pipeline
from pipelines.steps import Steps
from pipelines.transfer import nested


class Outputs(NamedTuple):
    report: dsl.HTML
    scores: dsl.Artifact
    genotype: dsl.Artifact
    networks: list[dsl.Model]


def build(site: Placement) -> Any:
    """The pipeline, placed as a site wants it."""
    transfer = nested(site.model_copy(update={"preflight": False}))  # this pipeline has asked already

    @pipeline("arnas", site)
    def arnas(
        preset: str = "cifar10",
        data: str = "",
        models: list[str] = ["searched"],
        shards: list[str] = ["1/1"],
        overrides: dict = {},
        checkpoints: str = "s3://mlpipeline/arnas/checkpoints",
        device: str = "auto",
        run: Mapping[str, Any] = {},
    ) -> Outputs:
        """Search an architecture that is accurate and robust, train it, attack it, and report.

        Args:
            preset: Settings to begin with (smoke, digits, cifar10-cpu, cifar10, tiny-imagenet), or path of a YAML
                file.
            data: Where the data set lies: a folder that the pods see, or s3://BUCKET/PREFIX; none where it
                comes with the library, or where the settings say it.
            models: Which of the settings' models to train and to attack.
            shards: Shares of the samples to attack with full sight of a model, a task each, such as ["1/2", "2/2"].
            overrides: Changes of the preset, such as {"search.epochs": 3}; every setting can be changed so.
            checkpoints: Where unfinished work is kept: s3://BUCKET/PREFIX, or a folder that outlives the tasks.
            device: auto, cpu, cuda, cuda:N or mps.

        Returns:
            report: Self-contained report.
            scores: Scores as JSON.
            genotype: The searched genotype as JSON.
            networks: The trained models, in the order of `models`.
        """
        told = {"preset": preset, "overrides": overrides}
        steps = Steps(site, run, told, checkpoints, device)

        images = steps.prepare(data, after=steps.preflight())
        supernet, genotype = steps.search(images)
        with dsl.ParallelFor(models, parallelism=site.parallelism) as model:
            network = steps.retrain(images, genotype, model)
            evaluation = steps.whitebox(network, images, shards)
        transferred = transfer(
            genotype=genotype, data="", checkpoints=checkpoints, device=device, **told, **run
        ).outputs
        reported = steps.report(
            images=images,
            supernet=supernet,
            genotype=genotype,
            networks=dsl.Collected(network),
            evaluations=dsl.Collected(evaluation),
            blackbox=steps.blackbox(dsl.Collected(network), images),
            transfer_network=transferred["network"],
            transfer_evaluation=transferred["evaluation"],
        )
        return Outputs(reported["html"], reported["scores"], genotype, dsl.Collected(network))

    return arnas
