"""The whole method as one pipeline: prepare, search, derive, retrain, attack, transfer, report."""

from typing import NamedTuple

from kfp import dsl

from components.blackbox.component import blackbox
from components.derive.component import derive
from components.prepare.component import prepare
from components.report.component import report
from components.retrain.component import retrain
from components.search.component import search
from components.whitebox.component import whitebox
from pipelines.transfer import transfer


class Outputs(NamedTuple):
    report: dsl.HTML
    scores: dsl.Artifact
    genotype: dsl.Artifact
    networks: list[dsl.Model]


@dsl.pipeline(name="arnas")
def arnas(
    preset: str = "cifar10",
    data: str = "",
    models: list[str] = ["searched"],
    overrides: dict = {},
    checkpoints: str = "/checkpoints",
    device: str = "auto",
) -> Outputs:
    """Search an architecture that is accurate and robust, train it, attack it, and report.

    Args:
        preset: Name of a preset of settings, or path of a YAML file.
        data: Where the data set lies; none where it comes with the library, or where the settings say it.
        models: Which of the settings' models to train and to attack, one after the other.
        overrides: Changes of the preset, such as {"search.epochs": 3}.
        checkpoints: Folder that outlives the tasks; an interrupted task goes on from there.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        report: Self-contained report.
        scores: Scores as JSON.
        genotype: The searched genotype as JSON.
        networks: The trained models, in the order of `models`.
    """
    told = {"preset": preset, "overrides": overrides}
    placed = {"checkpoints": checkpoints, "device": device}

    prepared = prepare(data=data, **told)
    prepared.set_caching_options(False)  # a cache would not see that the files changed
    images = prepared.outputs["images"]
    supernet = search(images=images, **told, **placed).outputs["supernet"]
    genotype = derive(supernet=supernet).outputs["genotype"]

    with dsl.ParallelFor(models, parallelism=1) as model:
        network = retrain(images=images, genotype=genotype, model=model, **told, **placed).outputs["network"]
        evaluation = whitebox(network=network, images=images, **told, **placed).outputs["evaluation"]

    unseen = blackbox(networks=dsl.Collected(network), images=images, **told, **placed).outputs["evaluation"]
    transferred = transfer(genotype=genotype, **told, **placed)
    reported = report(
        images=images,
        supernet=supernet,
        genotype=genotype,
        networks=dsl.Collected(network),
        evaluations=dsl.Collected(evaluation),
        blackbox=unseen,
        transfer_network=transferred.outputs["network"],
        transfer_evaluation=transferred.outputs["evaluation"],
        **told,
    )
    return Outputs(reported.outputs["html"], reported.outputs["scores"], genotype, dsl.Collected(network))
