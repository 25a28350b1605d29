from kfp import dsl

from components import component


@component
def prepare(
    images: dsl.Output[dsl.Dataset],
    preset: str = "cifar10",
    overrides: dict = {},
    variant: dict = {},
    data: str = "",
    section: str = "prepare",
    endpoint: str = "",
):
    """Read a data set and split it for search, training, model selection and test.

    Args:
        preset: Settings to begin with (smoke, digits, cifar10-cpu, cifar10, tiny-imagenet), or path of a YAML file.
            Default: cifar10.
        overrides: Changes of the preset, such as {"prepare.train_limit": 1000}; every setting can be changed so.
            Default: none.
        variant: Further changes, such as {"name": "digits", "prepare.dataset": "digits"}: one of a study. Default:
            none.
        data: Where the data set lies: a folder that the pod sees, or s3://BUCKET/PREFIX. Default: none, for
            data sets that come with the library (digits, glyphs), where the settings say it, or where
            {"prepare.download": true} among the overrides has it fetched.
        section: Section of the settings to follow: prepare, or transfer for the second data set. Default: prepare.
        endpoint: Address of the store where data is s3://..., such as http://minio.example:9000. Default: what the
            environment says (AWS_ENDPOINT_URL).

    Returns:
        images: Image set: images, labels and splits. Its metadata carries digest, data set, seed and sizes of the
            splits.
    """
    from arnas import config, task
    from arnas.errors import InvalidInput
    from arnas.stages import prepare

    if section not in ("prepare", "transfer"):
        raise InvalidInput(f"section = {section!r} describes no data set; give prepare or transfer.")
    task.use_store(endpoint)
    settings = config.load(preset, overrides | ({f"{section}.path": data} if data else {}), variant)
    task.record(images, prepare.run(images.path, getattr(settings, section)))
