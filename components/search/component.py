from kfp import dsl

from components import component


@component
def search(
    images: dsl.Input[dsl.Dataset],
    supernet: dsl.Output[dsl.Model],
    preset: str = "cifar10",
    overrides: dict = {},
    checkpoints: str = "/checkpoints",
    device: str = "auto",
):
    """Search for an architecture that is accurate and robust: train the supernet and its operation weights.

    Args:
        images: Image set, as written by the prepare component.
        preset: Name of a preset of settings, or path of a YAML file.
        overrides: Changes of the preset, such as {"search.epochs": 3}.
        checkpoints: Folder that outlives the task; an interrupted task goes on from there.
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        supernet: Searched supernet with its history; its metadata carries the digest.
    """
    from arnas import config
    from arnas.stages import search

    settings = config.load(preset, overrides).search
    supernet.metadata.update(search.run(images.path, supernet.path, settings, checkpoints=checkpoints, device=device))
