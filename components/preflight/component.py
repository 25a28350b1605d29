from kfp import dsl

from components import component


@component
def preflight(
    findings: dsl.Output[dsl.Artifact],
    task_gpus: str = "0",
    accelerator: str = "nvidia.com/gpu",
    gpu_pool: dict = {},
    gpu_tolerations: list = [],
    cpu_pool: dict = {},
    checkpoints: str = "/tmp/checkpoints",
    endpoint: str = "",
    secret: str = "mlpipeline-minio-artifact",
    queue: str = "",
    tolerations: list = [],
):
    """Ask the cluster, as the first task of a run, whether it has what the others need; change nothing there.

    Args:
        task_gpus: GPUs of a task, as text, from 0. Default: 0, which asks for none.
        accelerator: Name of the GPUs as a resource. Default: nvidia.com/gpu.
        gpu_pool: Labels of the nodes of tasks that have GPUs. Default: none, so any node.
        gpu_tolerations: Tolerations of these tasks, as in a pod. Default: none.
        cpu_pool: Labels of the nodes of all other tasks. Default: none, so any node.
        checkpoints: Where unfinished work will be kept; in s3://BUCKET/PREFIX an object is written, read and removed.
            Default: /tmp/checkpoints, which is not tried.
        endpoint: Address of the store where checkpoints are s3://..., such as http://minio.example:9000. Default: what
            the environment says (AWS_ENDPOINT_URL).
        secret: Secret of this namespace with the store's keys accesskey and secretkey. Default:
            mlpipeline-minio-artifact, that of a stock KFP.
        queue: Local queue of Kueue that tasks wait in. Default: none.
        tolerations: Further tolerations of tasks that have GPUs, such as are compiled into a pipeline. Default: none.

    Returns:
        findings: What was found, as JSON, where nothing is missing.
    """
    from arnas import task
    from cluster import preflight

    task.use_store(endpoint)
    preflight.require(
        findings.path,
        gpus=task.gpus(task_gpus),
        accelerator=accelerator,
        gpu_pool=gpu_pool,
        gpu_tolerations=[*gpu_tolerations, *tolerations],
        cpu_pool=cpu_pool,
        checkpoints=checkpoints,
        endpoint=endpoint,
        secret=secret,
        queue=queue,
    )
