from kfp import dsl

from components import component


@component
def transfer(
    genotype: dsl.Input[dsl.Artifact],
    images: dsl.Input[dsl.Dataset],
    network: dsl.Output[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    preset: str = "cifar10",
    overrides: dict = {},
    checkpoints: str = "/tmp/checkpoints",
    endpoint: str = "",
    device: str = "auto",
    gpus: str = "0",
):
    """Train and attack a searched architecture on another data set than the one that it was searched on.

    Args:
        genotype: Genotype, as written by the derive component.
        images: Image set of the other data set, as written by the prepare component.
        preset: Settings to begin with (smoke, digits, cifar10-cpu, cifar10, tiny-imagenet), or path of a YAML file. Its
            sections retrain and whitebox are followed. Default: cifar10.
        overrides: Changes of the preset, such as {"retrain.epochs": 3}; every setting can be changed so. Default: none.
        checkpoints: Where unfinished work is kept: s3://BUCKET/PREFIX, or a folder of a mounted volume. A task that was
            interrupted goes on from there. Default: /tmp/checkpoints, which is lost with the pod.
        endpoint: Address of the store where checkpoints are s3://..., such as http://minio.example:9000. Default: what
            the environment says (AWS_ENDPOINT_URL).
        device: What to compute on: auto (a GPU where there is one), cpu, cuda, cuda:N or mps. Default: auto.
        gpus: How many GPUs the pod was given, as text, from 0; the task fails at once if it sees fewer. Default: 0.

    Returns:
        network: Trained model with its history. Its metadata carries the digests, seed, versions and hold-out
            accuracies.
        evaluation: Accuracies with intervals, outcomes per image, examples. Its metadata carries the digests, seed,
            versions and accuracies.
        metrics: The accuracies alone, in [0, 1].
    """
    from arnas import artifacts, config, task
    from arnas.stages import retrain, transfer

    task.use_store(endpoint)
    settings = config.load(preset, overrides)
    figures = transfer.run(
        genotype.path,
        images.path,
        network.path,
        evaluation.path,
        settings.transferred(),
        settings.whitebox,
        checkpoints=checkpoints,
        device=device,
        gpus=task.gpus(gpus),
    )
    task.record(network, retrain.summary(artifacts.read(network.path, "model")))
    task.record(evaluation, figures, metrics)
