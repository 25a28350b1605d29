from kfp import dsl

from components import component


@component
def study(
    networks: dsl.Input[list[dsl.Model]],
    evaluations: dsl.Input[list[dsl.Artifact]],
    html: dsl.Output[dsl.HTML],
    result: dsl.Output[dsl.Artifact],
    table: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    blackbox: dsl.Input[dsl.Artifact] = None,
    name: str = "comparison",
    variants: list = [],
    preset: str = "cifar10",
    overrides: dict = {},
):
    """Collect networks that differ in a few settings: accuracies, paired comparisons, spread, operations chosen.

    Args:
        networks: Models, as written by the retrain component, each under the name of its variant.
        evaluations: Their white-box evaluations, as written by the whitebox or the merge component.
        blackbox: Black-box evaluation of all of them. Default: none.
        name: Name of the study: placement, comparison, transfer, seeds, ablation, or another. Default: comparison.
        variants: For each its name and the settings that it changes, as the other components got them. Default: none,
            which takes the models as they are.
        preset: Name of the preset of settings that was followed, or path of a YAML file. Default: cifar10.
        overrides: Changes of the preset that all variants have. Default: none.

    Returns:
        html: Self-contained page. Its metadata is that of the result.
        result: All figures as JSON. Its metadata carries the main ones, and the versions.
        table: A row for each variant, as CSV. Its metadata is that of the result.
        metrics: By attack the mean accuracy and its spread (sample standard deviation) where the variants differ in
            their seed alone; else accuracies by variant and attack, of more than 12 variants the lowest, mean and
            highest by attack. All in [0, 1].
    """
    from arnas import config, task
    from arnas.stages import study

    figures = study.run(
        variants,
        [network.path for network in networks],
        [evaluation.path for evaluation in evaluations],
        result.path,
        name=name,
        settings=config.load(preset, overrides),
        blackbox=blackbox.path if blackbox else None,
        page=html.path,
        table=table.path,
    )
    task.record(result, figures, metrics, [html, table])
