from kfp import dsl

from components import component


@component
def merge(
    shards: dsl.Input[list[dsl.Artifact]],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Put the shards of a white-box evaluation together; the result is that of one task over all samples.

    Args:
        shards: What the whitebox component wrote for each of 1/n to n/n, in any order.

    Returns:
        evaluation: Accuracies with intervals, outcomes per image, examples. Its metadata carries the digests, seed,
            versions and accuracies.
        metrics: The accuracies alone, in [0, 1].
    """
    from arnas import task
    from arnas.stages import merge

    task.record(evaluation, merge.run([shard.path for shard in shards], evaluation.path), metrics)
