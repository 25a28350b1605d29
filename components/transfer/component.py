from kfp import dsl

from components import component


@component
def transfer(
    genotype: dsl.Input[dsl.Artifact],
    images: dsl.Input[dsl.Dataset],
    network: dsl.Output[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    preset: str = "cifar10",
    overrides: dict = {},
    checkpoints: str = "/checkpoints",
    device: str = "auto",
):
    """Train and attack a searched architecture on another data set than the one that it was searched on.

    Args:
        genotype: Genotype, as written by the derive component.
        images: Image set of the other data set, as written by the prepare component.
        preset: Name of a preset of settings, or path of a YAML file; its sections retrain and whitebox are followed.
        overrides: Changes of the preset, such as {"retrain.epochs": 3}.
        checkpoints: Folder that outlives the task; an interrupted task goes on from there.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        network: Trained model with its history.
        evaluation: Accuracies with intervals, outcomes per image, examples; its metadata carries the digest.
    """
    from arnas import config
    from arnas.stages import transfer

    settings = config.load(preset, overrides)
    evaluation.metadata.update(
        transfer.run(
            genotype.path,
            images.path,
            network.path,
            evaluation.path,
            settings.transferred(),
            settings.whitebox,
            checkpoints=checkpoints,
            device=device,
        )
    )
