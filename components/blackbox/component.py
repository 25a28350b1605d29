from kfp import dsl

from components import component


@component
def blackbox(
    networks: dsl.Input[list[dsl.Model]],
    images: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    preset: str = "cifar10",
    overrides: dict = {},
    checkpoints: str = "/checkpoints",
    device: str = "auto",
):
    """Attack models without sight of them: adversarial examples transferred from each to each, and Square.

    Args:
        networks: Models, as written by the retrain component.
        images: Image set, as written by the prepare component; its test part is attacked.
        preset: Name of a preset of settings, or path of a YAML file.
        overrides: Changes of the preset, such as {"blackbox.images": 500}.
        checkpoints: Folder that outlives the task; an interrupted task goes on from there.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        evaluation: The matrix of accuracies, source by target, and those under Square; its metadata carries the digest.
    """
    from arnas import config
    from arnas.stages import blackbox

    settings = config.load(preset, overrides).blackbox
    paths = [network.path for network in networks]
    evaluation.metadata.update(
        blackbox.run(paths, images.path, evaluation.path, settings, checkpoints=checkpoints, device=device)
    )
