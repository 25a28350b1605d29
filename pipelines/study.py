"""The studies as pipelines: one graph, a loop over variants of settings with collected results."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kfp import dsl

from pipelines.placement import Placement, pipeline
from pipelines.steps import Steps
from pipelines.studies import STUDIES, Study


class Outputs(NamedTuple):
    report: dsl.HTML
    result: dsl.Artifact
    table: dsl.Artifact
    networks: list[dsl.Model]


def build(name: str, site: Placement) -> Any:
    """The pipeline of one of STUDIES, placed as a site wants it."""
    about = STUDIES[name]

    def study(
        preset: str = "cifar10",
        data: str = "",
        variants: list[dict] = [*about.variants],
        shards: list[str] = ["1/1"],
        overrides: dict = {**about.defaults},
        checkpoints: str = "s3://mlpipeline/arnas/checkpoints",
        device: str = "auto",
        run: Mapping[str, Any] = {},
    ) -> Outputs:
        steps = Steps(site, run, {"preset": preset, "overrides": overrides}, checkpoints, device)
        begun = steps.preflight()
        images = None if about.prepares else steps.prepare(data, after=begun)
        with dsl.ParallelFor(variants, parallelism=site.parallelism) as variant:
            own = steps.varied(variant)
            read = images or own.prepare(data, after=begun)
            genotype = own.search(read)[1] if about.searches else None
            network = own.retrain(read, genotype)
            evaluation = own.whitebox(network, read, shards)
        found = {"networks": dsl.Collected(network), "evaluations": dsl.Collected(evaluation)}
        if about.blackbox:
            found["blackbox"] = steps.blackbox(dsl.Collected(network), images)
        collected = steps.study(name=name, variants=variants, **found)
        return Outputs(collected["html"], collected["result"], collected["table"], dsl.Collected(network))

    study.__doc__ = _documentation(about)
    return pipeline(name, site)(study)


def _documentation(about: Study) -> str:
    defaults = ", ".join(f'"{key}": {value!r}' for key, value in about.defaults.items()).replace("'", '"')
    genotype = "" if about.searches else " retrain.architecture names the genotype: published, a file, or s3://..."
    kept = f" What is given replaces the default, {{{defaults}}}." if defaults else ""
    return f"""{about.sentence}

Every variant goes on where another one fails; the run fails then, and one that is started again computes what is
missing.

Args:
    preset: Settings to begin with (smoke, digits, cifar10-cpu, cifar10, tiny-imagenet), or path of a YAML file.
    data: Where the data set lies: a folder that the pods see, or s3://BUCKET/PREFIX; none where it comes with the
        library, or where the settings say it.
    variants: For each its name and the settings that it changes.
    shards: Shares of the samples to attack with full sight of a model, a task each, such as ["1/2", "2/2"].
    overrides: Changes of the preset that all variants have; every setting can be changed so.{genotype}{kept}
    checkpoints: Where unfinished work is kept: s3://BUCKET/PREFIX, or a folder that outlives the tasks.
    device: auto, cpu, cuda, cuda:N or mps.

Returns:
    report: Self-contained page.
    result: All figures as JSON.
    table: A row for each variant, as CSV.
    networks: The trained models."""
