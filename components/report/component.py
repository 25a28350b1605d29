from kfp import dsl

from components import component


@component
def report(
    images: dsl.Input[dsl.Dataset],
    supernet: dsl.Input[dsl.Model],
    genotype: dsl.Input[dsl.Artifact],
    networks: dsl.Input[list[dsl.Model]],
    evaluations: dsl.Input[list[dsl.Artifact]],
    blackbox: dsl.Input[dsl.Artifact],
    html: dsl.Output[dsl.HTML],
    scores: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    transfer_network: dsl.Input[dsl.Model] = None,
    transfer_evaluation: dsl.Input[dsl.Artifact] = None,
    preset: str = "cifar10",
    overrides: dict = {},
):
    """Write one page with everything that a run found, and its scores as JSON.

    Args:
        images: Image set, as written by the prepare component.
        supernet: Searched supernet, as written by the search component.
        genotype: Genotype, as written by the derive component.
        networks: Models, as written by the retrain component.
        evaluations: Their white-box evaluations, in any order.
        blackbox: Black-box evaluation of all of them.
        transfer_network: Model trained on the other data set; without it the report has no
            transfer section. Default: none.
        transfer_evaluation: Its white-box evaluation. Default: none.
        preset: Name of the preset of settings that was followed, or path of a YAML file. Default: cifar10.
        overrides: Changes of the preset that were made. Default: none.

    Returns:
        html: Self-contained report. Its metadata is that of the scores.
        scores: Scores as JSON. Its metadata carries every model's accuracies, and the versions.
        metrics: The same accuracies, in [0, 1], by model and attack, such as "searched autoattack".
    """
    from arnas import config, task
    from arnas.errors import InvalidInput
    from arnas.stages import report

    if (transfer_network is None) != (transfer_evaluation is None):
        raise InvalidInput("transfer_network and transfer_evaluation belong together; give both of them, or neither.")
    figures = report.run(
        html.path,
        scores.path,
        images=images.path,
        supernet=supernet.path,
        genotype=genotype.path,
        models=[network.path for network in networks],
        evaluations=[evaluation.path for evaluation in evaluations],
        blackbox=blackbox.path,
        transfer=(transfer_network.path, transfer_evaluation.path) if transfer_network else None,
        settings=config.load(preset, overrides),
    )
    task.record(scores, figures, metrics, [html])
