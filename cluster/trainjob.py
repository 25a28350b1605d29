"""Retraining over several nodes: a TrainJob of Kubeflow Trainer 2 that is made, followed and removed.

The nodes get their inputs from the bucket of the checkpoints, run `arnas retrain`, and leave the model there. What else
they have (pool, memory, volumes, rights, queue) says the TrainingRuntime: manifests/components/trainer.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import arnas
from arnas import artifacts, config, objects
from arnas.errors import Interrupted, InvalidInput
from cluster import kubeflow, pods
from cluster.pods import TIMEOUT

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
CONTAINER = "node"  # Trainer's name for the one that trains
KUEUE = "kueue.x-k8s.io/"  # how its labels begin: queue-name, priority-class
PAUSE = 5.0  # seconds between two looks at the job


class TrainJobFailed(RuntimeError):
    """A node of the TrainJob failed; the last checkpoint is kept."""


def retrain(
    images: str | Path,
    output: str | Path,
    *,
    name: str,
    preset: str,
    overrides: Mapping[str, Any],
    checkpoints: str,
    genotype: str | Path | None = None,
    nodes: int,
    gpus: int,
    accelerator: str,
    runtime: str,
    secret: str,
) -> dict[str, Any]:
    """As `arnas.stages.retrain.run`, on several nodes.

    The TrainJob is named by the digest of what is asked: a retry joins one that runs, replaces one that failed, and
    fetches what one has finished. Its owner is this task's pod: when that is removed, so is the TrainJob.

    Args:
        images, output, genotype: As in the stage.
        name: Which of the settings' models to train.
        preset, overrides: The settings; a preset of the package.
        checkpoints: s3://BUCKET/PREFIX, as the nodes reach it with the secret's keys.
        nodes: How many, from 1.
        gpus: Of each node, one process on each; 0 for one process on the CPU.
        accelerator: Name of the GPUs as a resource, such as nvidia.com/gpu.
        runtime: Name of the TrainingRuntime, in the namespace of this pod.
        secret: Name of the Kubernetes secret there with the store's `accesskey` and `secretkey`; "" where the runtime
            gives the nodes their credentials.

    Returns:
        As the stage.

    Raises:
        InvalidInput: Something cannot be used, or the cluster refuses the TrainJob.
        TrainJobFailed: A node failed, or somebody deleted the job.
        Interrupted: This process was asked to stop; so were the nodes.
    """
    from arnas.stages.retrain import summary

    _require(name, preset, overrides, checkpoints, nodes, gpus)
    artifacts.require_writable(output)
    asked = {
        "version": arnas.__version__,
        "images": artifacts.read(images, "image_set")["digest"],
        "genotype": artifacts.file_digest(Path(genotype)) if genotype else None,
        "settings": [name, preset, dict(overrides)],
        "placed": [checkpoints, nodes, gpus, accelerator, runtime, secret],
    }
    title = f"arnas-retrain-{artifacts.digest(asked)[:12]}"
    place = f"{checkpoints.rstrip('/')}/{title}"
    trainer = Trainer.here()
    if not objects.is_whole(f"{place}/model"):
        found = trainer.runtime(runtime)
        if not objects.is_whole(f"{place}/images"):
            objects.upload(Path(images), f"{place}/images")
        if genotype:
            objects.Bucket(place).put("genotype.json", Path(genotype))
        words = [f"--genotype={place}/genotype.json"] if genotype else []
        words += [f"--model={name}", f"--preset={preset}", f"--checkpoints={checkpoints}"]
        words += [f"--device={'cuda' if gpus else 'cpu'}", f"--processes={max(gpus, 1)}"]
        if overrides:
            words += ["--set", *(f"{key}={json.dumps(value)}" for key, value in overrides.items())]
        command = ["python3", "-m", "arnas.cli", "retrain", f"{place}/images", f"{place}/model", *words]
        trainer.run(job(title, command, nodes, gpus, accelerator, found, secret, trainer.own_pod()))
    with artifacts.publish(output) as folder:
        folder.mkdir()
        objects.download(f"{place}/model", folder)
        body = artifacts.read(folder, "model")
    trainer.remove(title)
    for part in ("model", "images", ""):  # killed in between, a retry finds each whole, or knows that it is not
        objects.remove(f"{place}/{part}")
    return summary(body)


def job(
    name: str,
    command: list[str],
    nodes: int,
    gpus: int,
    accelerator: str,
    runtime: Mapping[str, Any],
    secret: str,
    pod: Any = None,
) -> dict[str, Any]:
    """The TrainJob as an object; a task's pod gives the nodes its image, and takes them along when it is removed.

    It waits in the queue of Kueue that the labels of its TrainingRuntime name.
    """
    trainer: dict[str, Any] = {"numNodes": nodes, "numProcPerNode": max(gpus, 1), "command": command}
    told = ("AWS_ENDPOINT_URL", "AWS_REGION", "ARNAS_S3_PATIENCE")  # no secrets: the nodes read those themselves
    trainer["env"] = [{"name": key, "value": os.environ[key]} for key in told if os.environ.get(key)]
    if secret:
        for variable, key in (("AWS_ACCESS_KEY_ID", "accesskey"), ("AWS_SECRET_ACCESS_KEY", "secretkey")):
            trainer["env"] += [{"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}]
    if gpus:  # with all that the runtime gives: before 2.3, Trainer lets this take the place of it
        own = _resources(runtime)
        trainer["resourcesPerNode"] = own | {"limits": own.get("limits", {}) | {accelerator: str(gpus)}}
    labels = {key: value for key, value in runtime["metadata"].get("labels", {}).items() if key.startswith(KUEUE)}
    metadata: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/part-of": "arnas"} | labels}
    if pod:
        trainer["image"] = pods.image(pod)
        owner = {"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid}
        metadata["ownerReferences"] = [owner]
    reference = {"apiGroup": GROUP, "kind": "TrainingRuntime", "name": runtime["metadata"]["name"]}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {"runtimeRef": reference, "trainer": trainer},
    }


def _resources(runtime: Mapping[str, Any]) -> dict[str, Any]:
    """Requests and limits of the container that trains."""
    nodes = [each["template"]["spec"]["template"] for each in runtime["spec"]["template"]["spec"]["replicatedJobs"]]
    containers = [container for node in nodes for container in node["spec"]["containers"]]
    return next((each.get("resources", {}) for each in containers if each["name"] == CONTAINER), {})


@dataclass(frozen=True)
class Trainer:
    """Kubeflow Trainer in one namespace, by way of a `kubernetes.client.ApiClient`."""

    api: Any
    namespace: str

    @classmethod
    def here(cls) -> "Trainer":
        """In the namespace of this pod; outside of a cluster, in KFP's of the one that the kubeconfig names.

        Raises:
            InvalidInput: There is no cluster.
        """
        account = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
        return cls(pods.connect(), account.read_text() if account.exists() else kubeflow.NAMESPACE)

    def run(self, wanted: Mapping[str, Any]) -> None:
        """Make a TrainJob, or join it if it is there and goes on; return when it is complete.

        Raises:
            InvalidInput: The cluster refuses it.
            TrainJobFailed: It failed, and stays to be looked at, or it was deleted.
            Interrupted: This process was asked to stop; the job is deleted, so that its nodes save and stop.
        """
        name = wanted["metadata"]["name"]
        with _stoppable(f"TrainJob {name}"):
            try:
                self._begin(wanted)
                self._follow(name, wanted["spec"]["trainer"]["numNodes"])
            except (Interrupted, KeyboardInterrupt):
                self.remove(name)
                raise

    def remove(self, name: str) -> None:
        """Delete a TrainJob, if it is there; it is gone when its nodes are, which save their state before."""
        self._jobs("delete", name, propagation_policy="Foreground")

    def runtime(self, name: str) -> Any:
        """A TrainingRuntime.

        Raises:
            InvalidInput: There is none of that name, or this account may not look.
        """
        from kubernetes import client

        ask, where = client.CustomObjectsApi(self.api).get_namespaced_custom_object, (GROUP, VERSION, self.namespace)
        found = self._asked(lambda: ask(*where, "trainingruntimes", name, _request_timeout=TIMEOUT), absent=404)
        if found is None:
            mend = "kubectl apply -k manifests/components/trainer makes the runtime arnas"
            raise InvalidInput(f"There is no TrainingRuntime {name} in {self.namespace}; {mend}.")
        return found

    def own_pod(self) -> Any:
        """The pod of this task; None where Kubeflow does not tell which that is."""
        return self._asked(lambda: pods.own(self._core(), self.namespace), absent=404)

    def _begin(self, wanted: Mapping[str, Any]) -> None:
        name, said = wanted["metadata"]["name"], False
        while (before := self._state(name)) is not None:
            if not _is_over(before):
                _say(f"TrainJob {name} is there already; this task joins it.")
                return
            if not said:
                _say(f"TrainJob {name} is over; it is removed and begun anew, from its last checkpoint.")
            said = True
            self.remove(name)
            time.sleep(PAUSE)
        self._jobs("create", wanted, field_validation="Strict")
        _say(f"TrainJob {name} is made; kubectl -n {self.namespace} describe trainjob {name} tells more.")

    def _follow(self, name: str, nodes: int) -> None:
        said = ""
        while True:
            state = self._state(name)
            if state is None:
                raise TrainJobFailed(
                    f"TrainJob {name} was deleted while it ran; the same task goes on from its last checkpoint."
                )
            if _condition(state, "Complete"):
                return
            if failed := _condition(state, "Failed"):
                raise TrainJobFailed(self._failure(name, failed))
            if (news := self._progress(name, state, nodes)) != said:
                _say(f"TrainJob {name}: {news}.")
                said = news
            time.sleep(PAUSE)

    def _state(self, name: str) -> Any:
        """The TrainJob as it is, or None."""
        return self._jobs("get", name)

    def _progress(self, name: str, state: Mapping[str, Any], nodes: int) -> str:
        if suspended := _condition(state, "Suspended"):
            return f"suspended ({suspended['message'].rstrip('.')})"
        found = self._nodes(name)
        waiting = next(filter(None, map(pods.obstacle, found)), None)
        running = sum(pod.status.phase == "Running" for pod in found)
        return f"{running} of {nodes} nodes run" + (f", one waits ({waiting})" if waiting else "")

    def _failure(self, name: str, condition: Mapping[str, Any]) -> str:
        """Why the job failed, and the end of the log of the node that was the first to fail."""
        why = f"TrainJob {name} failed ({condition['message'].rstrip('.')})"
        failed = [pod for pod in self._nodes(name) if pod.status.phase == "Failed"]
        if not failed:
            return f"{why}, and its pods are gone; what they said is where the cluster keeps old logs."
        first = min(failed, key=_ended)
        log = self._asked(lambda: pods.log_end(self._core(), self.namespace, first.metadata.name, CONTAINER))
        return "\n".join([f"{why} in pod {first.metadata.name}: {pods.why(first)}.", *log])

    def _nodes(self, name: str) -> list[Any]:
        """The job's pods."""
        selector = f"jobset.sigs.k8s.io/jobset-name={name}"
        ask = self._core().list_namespaced_pod
        return list(self._asked(lambda: ask(self.namespace, label_selector=selector, _request_timeout=TIMEOUT)).items)

    def _refusal(self, error: Any) -> InvalidInput:
        if _is_unknown(error):
            return InvalidInput(
                f"The cluster knows no TrainJob ({GROUP}/{VERSION}); install Kubeflow Trainer 2, or use one node."
            )
        said = str(error.body or error.reason)
        with suppress(ValueError, KeyError):  # a proxy may answer in its own words
            said = json.loads(said)["message"]
        said = " ".join(said.split()).rstrip(".")
        if error.status == 403:
            said = f"{said}; manifests/components/trainer holds the rights that are needed"
        return InvalidInput(f"The cluster refuses the TrainJob: {said}.")

    def _core(self) -> Any:
        from kubernetes import client

        return client.CoreV1Api(self.api)

    def _jobs(self, verb: str, what: Any, **more: Any) -> Any:
        """Call an operation on TrainJobs; None where the job is not there, or one to be made is there already."""
        from kubernetes import client

        operation = getattr(client.CustomObjectsApi(self.api), f"{verb}_namespaced_custom_object")
        return self._asked(
            lambda: operation(GROUP, VERSION, self.namespace, PLURAL, what, _request_timeout=TIMEOUT, **more),
            absent=409 if verb == "create" else 404,  # a twin of this task may have made it
        )

    def _asked(self, call: Callable[[], Any], absent: int = 0) -> Any:
        """What the API server answers, None at the status `absent`; a server that is away for a while is waited for."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        while True:
            try:
                return call()
            except ApiException as error:
                if error.status == absent and not _is_unknown(error):
                    return None
                if error.status < 500 and error.status != 429:
                    raise self._refusal(error) from None
                reason = error.reason
            except HTTPError as error:
                reason = type(error).__name__
            _say(f"the cluster does not answer ({reason}); the nodes go on, and so does this task when it does.")
            time.sleep(PAUSE)


def _require(name: str, preset: str, overrides: Mapping[str, Any], checkpoints: str, nodes: int, gpus: int) -> None:
    """Refuse what the nodes could not use, before anything starts."""
    if not objects.is_place(checkpoints):
        raise InvalidInput(
            f"checkpoints is {checkpoints!r}, which several nodes do not share; give s3://BUCKET/PREFIX."
        )
    if preset not in config.presets():
        raise InvalidInput(
            f"preset {preset!r} is not in the image of the nodes; name one of {', '.join(config.presets())}, "
            "and change it by overrides."
        )
    if nodes < 1 or gpus < 0:
        raise InvalidInput(f"nodes = {nodes} and GPUs of each = {gpus} cannot be; give at least 1 and 0.")
    config.load(preset, overrides).recipe(name)


def _condition(state: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """A condition of the job's status, if it is true."""
    conditions = state.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == kind and each["status"] == "True"), None)


def _is_over(state: Mapping[str, Any]) -> bool:
    """Whether the job will not train any more: it has ended, or is being deleted."""
    ended = _condition(state, "Complete") or _condition(state, "Failed")
    return bool(ended) or "deletionTimestamp" in state["metadata"]


def _is_unknown(error: Any) -> bool:
    """Whether the API server does not know this kind of object."""
    return "page not found" in str(error.body)


def _ended(pod: Any) -> str:
    """When the first of a pod's containers failed; an evicted pod may not say."""
    ends = [container.state.terminated for container in pod.status.container_statuses or [] if container.state]
    return min((str(end.finished_at) for end in ends if end and end.exit_code), default="")


@contextmanager
def _stoppable(stage: str) -> Iterator[None]:
    """Within, SIGTERM and SIGINT raise Interrupted."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(stage, number, saved=None)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _say(message: str) -> None:
    print(f"[retrain] {message}", file=sys.stderr, flush=True)
