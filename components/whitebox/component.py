from kfp import dsl

from components import component


@component
def whitebox(
    network: dsl.Input[dsl.Model],
    images: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    preset: str = "cifar10",
    overrides: dict = {},
    checkpoints: str = "/checkpoints",
    device: str = "auto",
    shard: str = "1/1",
):
    """Attack a model with full sight of it: FGSM, PGD-20, PGD-100, AutoAttack.

    Args:
        network: Model, as written by the retrain component.
        images: Image set, as written by the prepare component; its test part is attacked.
        preset: Name of a preset of settings, or path of a YAML file.
        overrides: Changes of the preset, such as {"whitebox.images": 500}.
        checkpoints: Folder that outlives the task; an interrupted task goes on from there.
        device: auto, cpu, cuda, cuda:N or mps.
        shard: Share of the samples to attack, such as 2/4; the merge component puts the shares together.

    Returns:
        evaluation: Accuracies with intervals, outcomes per image, examples; its metadata carries the digest.
        metrics: The accuracies alone, in [0, 1].
    """
    from arnas import config
    from arnas.stages import whitebox

    settings = config.load(preset, overrides).whitebox
    figures = whitebox.run(
        network.path, images.path, evaluation.path, settings, checkpoints=checkpoints, device=device, shard=shard
    )
    evaluation.metadata.update(figures)
    metrics.metadata.update({name: figure for name, figure in figures.items() if isinstance(figure, float)})
