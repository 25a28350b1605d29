from kfp import dsl

from components import component


@component
def retrain(
    images: dsl.Input[dsl.Dataset],
    network: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    genotype: dsl.Input[dsl.Artifact] = None,
    model: str = "searched",
    preset: str = "cifar10",
    overrides: dict = {},
    variant: dict = {},
    checkpoints: str = "/tmp/checkpoints",
    endpoint: str = "",
    device: str = "auto",
    gpus: str = "0",
):
    """Train one network adversarially; the weights kept are those most robust on the hold-out.

    Args:
        images: Image set, as written by the prepare component.
        genotype: Genotype, as written by the derive component. Default: none; only models of architecture "searched"
            need it.
        model: Which of the settings' models to train: a name in their section models. Default: searched.
        preset: Settings to begin with (smoke, digits, cifar10-cpu, cifar10, tiny-imagenet), or path of a YAML file.
            Default: cifar10.
        overrides: Changes of the preset, such as {"retrain.epochs": 3}; every setting can be changed so. Default: none.
        variant: One of a study, such as {"name": "A1 D2 R2", "retrain.layout": "A1 D2 R2"}: further changes, with which
            the settings' section retrain is followed, whatever model says; the result goes by its name. Default: none.
        checkpoints: Where unfinished work is kept: s3://BUCKET/PREFIX, or a folder of a mounted volume. A task that was
            interrupted goes on from there. Default: /tmp/checkpoints, which is lost with the pod.
        endpoint: Address of the store where checkpoints are s3://..., such as http://minio.example:9000. Default: what
            the environment says (AWS_ENDPOINT_URL).
        device: What to compute on: auto (a GPU where there is one), cpu, cuda, cuda:N or mps. Default: auto.
        gpus: How many GPUs the pod was given, as text, from 0; the task fails at once if it sees fewer. Default: 0.

    Returns:
        network: Trained model with its history. Its metadata carries the digests, seed, versions and accuracies.
        metrics: Hold-out accuracies in [0, 1] of the best and the last epoch; parameters and multiply-adds.
    """
    from arnas import config, task
    from arnas.stages import retrain

    task.use_store(endpoint)
    settings = config.load(preset, overrides, variant)
    source = genotype.path if genotype else None
    figures = retrain.run(
        images.path,
        network.path,
        settings.retrain if variant else settings.recipe(model),
        name=variant.get("name", model),
        genotype=source,
        checkpoints=checkpoints,
        device=device,
        gpus=task.gpus(gpus),
    )
    task.record(network, figures, metrics)
