from kfp import dsl

from components import component


@component
def prepare(
    images: dsl.Output[dsl.Dataset],
    preset: str = "cifar10",
    overrides: dict = {},
    data: str = "",
    section: str = "prepare",
):
    """Read a data set and split it for search, training, model selection and test.

    Args:
        preset: Name of a preset of settings, or path of a YAML file.
        overrides: Changes of the preset, such as {"prepare.train_limit": 1000}.
        data: Where the data set lies; none for data sets that come with the library, or where the settings say it.
        section: Section of the settings to follow: prepare, or transfer for the second data set.

    Returns:
        images: Image set; its metadata carries the digest.
    """
    from arnas import config
    from arnas.stages import prepare

    settings = config.load(preset, overrides | ({f"{section}.path": data} if data else {}))
    images.metadata.update(prepare.run(images.path, getattr(settings, section)))
