from kfp import dsl

from components import component


@component
def seeds(
    genotypes: dsl.Input[list[dsl.Artifact]],
    evaluations: dsl.Input[list[dsl.Artifact]],
    summary: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Summarise searches that differ in their seed alone: mean and spread of each accuracy, operations chosen.

    Args:
        genotypes: Genotype of each seed, as written by the derive component.
        evaluations: White-box evaluation of each seed's network, as written by the whitebox or the merge component, in
            the same order.

    Returns:
        summary: A row for each seed, the spread of each accuracy, and counts of operations by cell kind, as JSON.
        metrics: By attack the mean accuracy over the seeds and its spread (sample standard deviation), in [0, 1].
    """
    from arnas import task
    from arnas.stages import seeds

    figures = seeds.run(
        [genotype.path for genotype in genotypes], [evaluation.path for evaluation in evaluations], summary.path
    )
    task.record(summary, figures, metrics)
