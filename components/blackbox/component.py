from kfp import dsl

from components import component


@component
def blackbox(
    networks: dsl.Input[list[dsl.Model]],
    images: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    preset: str = "cifar10",
    overrides: dict = {},
    checkpoints: str = "/tmp/checkpoints",
    endpoint: str = "",
    device: str = "auto",
    gpus: str = "0",
):
    """Attack models without sight of them: adversarial examples transferred from each to each, and Square.

    Args:
        networks: Models of different names, as written by the retrain component.
        images: Image set, as written by the prepare component; its test part is attacked.
        preset: Settings to begin with (smoke, digits, cifar10-cpu, cifar10, tiny-imagenet), or path of a YAML file.
            Default: cifar10.
        overrides: Changes of the preset, such as {"blackbox.images": 500}; every setting can be changed so. Default:
            none.
        checkpoints: Where unfinished work is kept: s3://BUCKET/PREFIX, or a folder of a mounted volume. A task that was
            interrupted goes on from there. Default: /tmp/checkpoints, which is lost with the pod.
        endpoint: Address of the store where checkpoints are s3://..., such as http://minio.example:9000. Default: what
            the environment says (AWS_ENDPOINT_URL).
        device: What to compute on: auto (a GPU where there is one), cpu, cuda, cuda:N or mps. Default: auto.
        gpus: How many GPUs the pod was given, as text, from 0; the task fails at once if it sees fewer. Default: 0.

    Returns:
        evaluation: The matrix of accuracies, source by target, and those under Square. Its metadata carries the
            digests, seed, versions and accuracies.
        metrics: The accuracies alone, in [0, 1], by "source -> target".
    """
    from arnas import config, task
    from arnas.stages import blackbox

    task.use_store(endpoint)
    settings = config.load(preset, overrides).blackbox
    paths = [network.path for network in networks]
    figures = blackbox.run(
        paths, images.path, evaluation.path, settings, checkpoints=checkpoints, device=device, gpus=task.gpus(gpus)
    )
    task.record(evaluation, figures, metrics)
