from kfp import dsl

from components import component


@component
def trainjob(
    images: dsl.Input[dsl.Dataset],
    network: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    genotype: dsl.Input[dsl.Artifact] = None,
    model: str = "searched",
    preset: str = "cifar10",
    overrides: dict = {},
    checkpoints: str = "s3://mlpipeline/arnas/checkpoints",
    endpoint: str = "",
    nodes: int = 2,
    gpus_per_node: int = 1,
    accelerator: str = "nvidia.com/gpu",
    runtime: str = "arnas",
    secret: str = "mlpipeline-minio-artifact",
):
    """Retrain over several nodes, as a TrainJob of Kubeflow Trainer 2; but for rounding, the network is retrain's.

    This task itself needs no GPU: it starts the TrainJob, follows it, and fetches the network; a retry joins the same
    TrainJob, which goes when the task's pod is removed. The effective batch, schedule and seeds are those of one GPU.

    Args:
        images: Image set, as written by the prepare component.
        genotype: Genotype, as written by the derive component. Default: none; only models of architecture "searched"
            need it.
        model: Which of the settings' models to train: a name in their section models. Default: searched.
        preset: Settings to begin with (smoke, digits, cifar10-cpu, cifar10, tiny-imagenet). Default: cifar10.
        overrides: Changes of the preset, such as {"retrain.epochs": 3}; every setting can be changed so. Default: none.
        checkpoints: Where unfinished work, inputs and the network are kept for the nodes: s3://BUCKET/PREFIX. Default:
            s3://mlpipeline/arnas/checkpoints.
        endpoint: Address of the store, such as http://minio.example:9000, for this task and the nodes. Default: what
            the environment says (AWS_ENDPOINT_URL).
        nodes: How many nodes train, from 1. Default: 2.
        gpus_per_node: GPUs of each node, from 0; nodes without one train on their CPU. Default: 1.
        accelerator: Name of the GPUs as a resource, such as nvidia.com/gpu or amd.com/gpu. Default: nvidia.com/gpu.
        runtime: Name of the TrainingRuntime in this namespace (manifests/components/trainer), which says pool, memory
            and queue of the nodes. Default: arnas.
        secret: Name of the Kubernetes secret in this namespace with the store's accesskey and secretkey, for the nodes;
            empty: the runtime gives them. Default: mlpipeline-minio-artifact, that of a stock KFP.

    Returns:
        network: Trained model with its history. Its metadata carries the digests, seed, versions and accuracies.
        metrics: Hold-out accuracies in [0, 1] of the best and the last epoch; parameters and multiply-adds.
    """
    from arnas import task
    from cluster import trainjob

    task.use_store(endpoint)
    figures = trainjob.retrain(
        images.path,
        network.path,
        name=model,
        preset=preset,
        overrides=overrides,
        checkpoints=checkpoints,
        genotype=genotype.path if genotype else None,
        nodes=nodes,
        gpus=gpus_per_node,
        accelerator=accelerator,
        runtime=runtime,
        secret=secret,
    )
    task.record(network, figures, metrics)
