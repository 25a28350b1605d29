from kfp import dsl

from components import component


@component
def whitebox(
    network: dsl.Input[dsl.Model],
    images: dsl.Input[dsl.Dataset],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    preset: str = "cifar10",
    overrides: dict = {},
    shard: str = "1/1",
    checkpoints: str = "/tmp/checkpoints",
    endpoint: str = "",
    device: str = "auto",
    gpus: str = "0",
):
    """Attack a model with full sight of it: FGSM, PGD-20, PGD-100, AutoAttack.

    Args:
        network: Model, as written by the retrain component.
        images: Image set, as written by the prepare component; its test part is attacked.
        preset: Settings to begin with (smoke, digits, cifar10-cpu, cifar10, tiny-imagenet), or path of a YAML file.
            Default: cifar10.
        overrides: Changes of the preset, such as {"whitebox.images": 500}; every setting can be changed so. Default:
            none.
        shard: Share of the samples to attack, such as 2/4; the merge component puts the shares together. Default: 1/1,
            all.
        checkpoints: Where unfinished work is kept: s3://BUCKET/PREFIX, or a folder of a mounted volume. A task that was
            interrupted goes on from there. Default: /tmp/checkpoints, which is lost with the pod.
        endpoint: Address of the store where checkpoints are s3://..., such as http://minio.example:9000. Default: what
            the environment says (AWS_ENDPOINT_URL).
        device: What to compute on: auto (a GPU where there is one), cpu, cuda, cuda:N or mps. Default: auto.
        gpus: How many GPUs the pod was given, as text, from 0; the task fails at once if it sees fewer. Default: 0.

    Returns:
        evaluation: Accuracies with intervals, outcomes per image, examples; or a share of them. Its metadata carries
            the digests, seed, versions and accuracies.
        metrics: The accuracies alone, in [0, 1]; none for a share.
    """
    from arnas import config, task
    from arnas.stages import whitebox

    task.use_store(endpoint)
    settings = config.load(preset, overrides).whitebox
    figures = whitebox.run(
        network.path,
        images.path,
        evaluation.path,
        settings,
        shard=shard,
        checkpoints=checkpoints,
        device=device,
        gpus=task.gpus(gpus),
    )
    task.record(evaluation, figures, metrics)
