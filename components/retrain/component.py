from kfp import dsl

from components import component


@component
def retrain(
    images: dsl.Input[dsl.Dataset],
    network: dsl.Output[dsl.Model],
    genotype: dsl.Input[dsl.Artifact] = None,
    model: str = "searched",
    preset: str = "cifar10",
    overrides: dict = {},
    checkpoints: str = "/checkpoints",
    device: str = "auto",
):
    """Train one network adversarially; the weights kept are those most robust on the hold-out.

    Args:
        images: Image set, as written by the prepare component.
        genotype: Genotype, as written by the derive component; only models of architecture "searched" need it.
        model: Which of the settings' models to train.
        preset: Name of a preset of settings, or path of a YAML file.
        overrides: Changes of the preset, such as {"retrain.epochs": 3}.
        checkpoints: Folder that outlives the task; an interrupted task goes on from there.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        network: Trained model with its history; its metadata carries the digest.
    """
    from arnas import config
    from arnas.stages import retrain

    settings = config.load(preset, overrides).recipe(model)
    network.metadata.update(
        retrain.run(
            images.path,
            network.path,
            settings,
            name=model,
            genotype=genotype.path if genotype else None,
            checkpoints=checkpoints,
            device=device,
        )
    )
