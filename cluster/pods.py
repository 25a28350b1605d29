"""Pods, those of a KFP run above all, as Kubernetes tells of them: why they wait, why they failed, what they said."""

import datetime
import os
import re
from collections.abc import Iterator
from typing import Any

from arnas.errors import InvalidInput

TIMEOUT = (10, 60)  # seconds to connect and to answer; Kubernetes' client would wait for ever
LINES = 20
SLOW = datetime.timedelta(minutes=1)  # a pod that starts for longer may lack a volume
_STARTING = ("PodInitializing", "ContainerCreating")  # nothing is wrong yet


def connect() -> Any:
    """Kubernetes' API, as the kubeconfig or the pod's own account reach it.

    Raises:
        InvalidInput: There is neither, or it is damaged.
    """
    import yaml
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        try:
            config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)
        except config.ConfigException:
            config.load_incluster_config(client_configuration=configuration)
    except (config.ConfigException, OSError, TypeError, ValueError, AttributeError, yaml.YAMLError):
        raise InvalidInput("There is no kubeconfig that can be used; set KUBECONFIG to the file of one.") from None
    return client.ApiClient(configuration)


def silence() -> tuple[type[Exception], ...]:
    """What reading pods raises where Kubernetes refuses, is away, or is something else that answers."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    return ApiException, HTTPError, AttributeError, ValueError


def own(core: Any, namespace: str) -> Any:
    """The pod of this task; None where Kubeflow does not tell which that is."""
    name = os.environ.get("KFP_POD_NAME")
    return core.read_namespaced_pod(name, namespace, _request_timeout=TIMEOUT) if name else None


def image(pod: Any) -> str:
    """What a task's program runs in."""
    return str(next(container.image for container in pod.spec.containers if container.name == "main"))


def waiting(core: Any, namespace: str, run_id: str) -> dict[str, str]:
    """Tasks of a run whose pods do not start, and what keeps them."""
    found = _pods(core, namespace, run_id)
    return {_task(pod): reason for pod in found if (reason := obstacle(pod) or _lacking(core, namespace, pod))}


def obstacle(pod: Any) -> str | None:
    """What keeps a pod from starting, if anything does: no node with room, no image, ..."""
    if pod.status.phase != "Pending":
        return None
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason}: {condition.message}"
    for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        state = container.state and container.state.waiting
        if state and state.reason not in _STARTING:
            return ": ".join(filter(None, [state.reason, state.message]))
    return None


def _lacking(core: Any, namespace: str, pod: Any) -> str | None:
    """The volume that a pod waits for, such as a secret's; Kubernetes tells of it in events only."""
    from kubernetes.client import ApiException

    if pod.status.phase != "Pending" or datetime.datetime.now(datetime.UTC) - pod.metadata.creation_timestamp < SLOW:
        return None
    selector = f"involvedObject.name={pod.metadata.name},reason=FailedMount"
    try:
        events = core.list_namespaced_event(namespace, field_selector=selector, _request_timeout=TIMEOUT).items
    except ApiException:  # who may see pods may not see events
        return None
    return f"{events[-1].reason}: {events[-1].message}" if events else None


def failures(core: Any, namespace: str, run_id: str) -> Iterator[str]:
    """Why pods of a run failed: a line for each reason, and the last lines of the log below it."""
    last = {}  # a pod that was tried again counts once
    for pod in sorted(_pods(core, namespace, run_id), key=lambda pod: str(pod.metadata.creation_timestamp)):
        last[re.sub(r"\(\d+\)$", "", _node(pod))] = pod
    for pod in last.values():
        if pod.status.phase != "Failed":
            continue
        yield f"{_task(pod)} failed in pod {pod.metadata.name}: {why(pod)}."
        yield from log_end(core, namespace, pod.metadata.name, "main")


def log_end(core: Any, namespace: str, pod: str, container: str) -> list[str]:
    """The last lines of a container's log, indented."""
    from kubernetes.client import ApiException

    try:
        log = core.read_namespaced_pod_log(
            pod, namespace, container=container, tail_lines=LINES, _request_timeout=TIMEOUT
        )
    except ApiException as error:
        log = f"(its log is gone: {error.reason})"
    return [f"    {line}" for line in log.splitlines()]


def _pods(core: Any, namespace: str, run_id: str) -> list[Any]:
    selector = f"pipeline/runid={run_id}"  # KFP puts it on every pod of a run
    return list(core.list_namespaced_pod(namespace, label_selector=selector, _request_timeout=TIMEOUT).items)


def _node(pod: Any) -> str:
    """Argo's name of what the pod does, such as arnas-x7k2p.root.retrain.executor(0)."""
    return str((pod.metadata.annotations or {}).get("workflows.argoproj.io/node-name", pod.metadata.name))


def _task(pod: Any) -> str:
    """The task that the pod works for, such as retrain, with its place in loops."""
    *path, last = _node(pod).split(".")
    name = path[-1] if path and last.startswith("executor") else last
    iterations = [part.partition("(")[2].partition(":")[0] for part in path if part.startswith("iteration-iterations(")]
    return f"{name} (iteration {'.'.join(iterations)})" if iterations else name


def why(pod: Any) -> str:
    """What Kubernetes gives as the reason: Evicted, OOMKilled, an exit status."""
    reasons = [": ".join(filter(None, [pod.status.reason, pod.status.message]))] if pod.status.reason else []
    for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        end = container.state and container.state.terminated
        if end and end.exit_code:
            reasons.append(f"{container.name} ended with {end.reason or 'an error'}, exit status {end.exit_code}")
    return "; ".join(reasons).rstrip(".") or "Kubernetes gives no reason"
