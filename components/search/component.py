from kfp import dsl

from components import component


@component
def search(
    images: dsl.Input[dsl.Dataset],
    supernet: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    preset: str = "cifar10",
    overrides: dict = {},
    variant: dict = {},
    checkpoints: str = "/tmp/checkpoints",
    endpoint: str = "",
    device: str = "auto",
    gpus: str = "0",
):
    """Search for an architecture that is accurate and robust: train the supernet and its operation weights.

    Args:
        images: Image set, as written by the prepare component.
        preset: Settings to begin with (smoke, digits, cifar10-cpu, cifar10, tiny-imagenet), or path of a YAML file.
            Default: cifar10.
        overrides: Changes of the preset, such as {"search.epochs": 3}; every setting can be changed so. Default: none.
        variant: Further changes, such as {"name": "seed 3", "seed": 3}: one of a study. Default: none.
        checkpoints: Where unfinished work is kept: s3://BUCKET/PREFIX, or a folder of a mounted volume. A task that was
            interrupted goes on from there. Default: /tmp/checkpoints, which is lost with the pod.
        endpoint: Address of the store where checkpoints are s3://..., such as http://minio.example:9000. Default: what
            the environment says (AWS_ENDPOINT_URL).
        device: What to compute on: auto (a GPU where there is one), cpu, cuda, cuda:N or mps. Default: auto.
        gpus: How many GPUs the pod was given, as text, from 0; the task fails at once if it sees fewer. Default: 0.

    Returns:
        supernet: Searched supernet with its history. Its metadata carries the digests, seed and versions.
        metrics: Final losses, the weight gamma of the natural one, and how many cells collapsed to skip connections.
    """
    from arnas import config, task
    from arnas.stages import search

    task.use_store(endpoint)
    settings = config.load(preset, overrides, variant).search
    figures = search.run(
        images.path, supernet.path, settings, checkpoints=checkpoints, device=device, gpus=task.gpus(gpus)
    )
    task.record(supernet, figures, metrics)
