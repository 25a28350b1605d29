"""Seeds: the search repeated, so that what it finds is told as a mean and a spread and not as the best of several."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kfp import dsl

from pipelines.placement import Placement, pipeline
from pipelines.steps import Steps


class Outputs(NamedTuple):
    summary: dsl.Artifact
    genotypes: list[dsl.Artifact]


def build(site: Placement) -> Any:
    """The pipeline, placed as a site wants it."""

    @pipeline("seeds", site)
    def seeds(
        preset: str = "cifar10",
        data: str = "",
        seeds: list[str] = ["0", "1", "2", "3"],
        model: str = "searched",
        shards: list[str] = ["1/1"],
        overrides: dict = {},
        checkpoints: str = "s3://mlpipeline/arnas/checkpoints",
        device: str = "auto",
        run: Mapping[str, Any] = {},
    ) -> Outputs:
        """Search, train and attack once for each seed, on one split of the data, and summarise.

        Args:
            preset: Name of a preset of settings (smoke, digits, cifar10-cpu, cifar10), or path of a YAML file.
            data: Where the data set lies: a folder that the pods see, or s3://BUCKET/PREFIX; none where it
                comes with the library, or where the settings say it.
            seeds: Seeds of search and training, as text.
            model: Which of the settings' models to train; of architecture "searched".
            shards: Shares of the samples to attack, a task each, such as ["1/2", "2/2"].
            overrides: Changes of the preset, such as {"search.epochs": 3}; every setting can be changed so.
            checkpoints: Where unfinished work is kept: s3://BUCKET/PREFIX, or a folder that outlives the tasks.
            device: auto, cpu, cuda, cuda:N or mps.

        Returns:
            summary: A row for each seed, mean and spread of each accuracy, operations by cell kind, as JSON.
            genotypes: The genotypes, in the order of `seeds`.
        """
        steps = Steps(site, run, {"preset": preset, "overrides": overrides}, checkpoints, device)
        images = steps.prepare(data)
        with dsl.ParallelFor(seeds, parallelism=site.parallelism) as seed:
            _, genotype = steps.search(images, seed)
            network = steps.retrain(images, genotype, model, seed)
            evaluation = steps.whitebox(network, images, shards)
        summary = steps.seeds(dsl.Collected(genotype), dsl.Collected(evaluation))
        return Outputs(summary, dsl.Collected(genotype))

    return seeds
