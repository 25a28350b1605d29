"""A node without a kubelet: it runs each pod's main program as a process of this machine, and tells the API server.

KFP's drivers run in this process. A task's own program gets what KFP's launcher and the kubelet would give it: its
arguments, its environment with values out of secrets, its inputs. Images, volumes and other containers are left out.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

from kubernetes import client, config

NAME = "rehearsal"
ARGO = ("argoproj.io", "v1alpha1")


class Node:
    """Use as a context.

    Args:
        cluster: A control plane.
        namespace: Whose pods are run.
        driver: A `rehearsal.driver.Driver`.
        folder: For the programs' temporary files and logs.
        environment: Of every program, beside what its pod says.
    """

    def __init__(self, cluster, namespace, driver, folder, environment):
        config.load_kube_config(str(cluster.kubeconfig))
        self.core, self.custom = client.CoreV1Api(), client.CustomObjectsApi()
        self.namespace, self.driver, self.folder, self.environment = namespace, driver, folder, environment
        self.pods, self.processes, self.lives, self.failures = {}, {}, [], []
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        try:
            self.core.create_node(client.V1Node(metadata=client.V1ObjectMeta(name=NAME)))
        except client.ApiException as error:
            if error.status != 409:
                raise
        self._watcher.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        self._watcher.join()
        for pod in list(self.processes):
            _kill(self.processes.pop(pod), signal.SIGKILL)
        for life in self.lives:
            life.join()

    def log(self, pod):
        """What the program of a pod has said so far."""
        return (self.folder / f"{pod}.log").read_text(errors="replace")

    def evict(self, pod):
        """The kubelet needs the memory: the pod's processes are gone, the pod stays and says why."""
        _kill(self.processes.pop(pod), signal.SIGKILL)
        self._report(pod, phase="Failed", reason="Evicted", message="The node was low on resource: memory.")

    def delete(self, pod):
        """What kubectl, preemption and drain do: processes are stopped, then the pod is no more."""
        self.core.delete_namespaced_pod(pod, self.namespace, grace_period_seconds=30)
        _kill(self.processes.pop(pod), signal.SIGKILL)
        self._end(pod, 143)
        self.core.delete_namespaced_pod(pod, self.namespace, grace_period_seconds=0)

    def kill(self, pod):
        """The kernel kills the program; the rest of the pod notices."""
        _kill(self.processes[pod], signal.SIGKILL)

    def _watch(self):
        while not self._stop.wait(0.2):
            for pod in self.core.list_namespaced_pod(self.namespace).items:
                known = self.pods.get(pod.metadata.name)  # Argo gives a pod that it makes anew the same name
                if (known is None or known.metadata.uid != pod.metadata.uid) and not pod.metadata.deletion_timestamp:
                    self.pods[pod.metadata.name] = pod
                    self.lives.append(threading.Thread(target=self._live, args=(pod,), daemon=True))
                    self.lives[-1].start()

    def _live(self, pod):
        name = pod.metadata.name
        target = client.V1ObjectReference(api_version="v1", kind="Node", name=NAME)
        binding = client.V1Binding(metadata=client.V1ObjectMeta(name=name), target=target)
        self.core.create_namespaced_binding(self.namespace, binding, _preload_content=False)
        main = next(container for container in pod.spec.containers if container.name == "main")
        command = main.command[main.command.index("--") + 1 :] + (main.args or [])  # what Argo's emissary starts
        self._report(pod.metadata.name, "running")
        try:
            if command[0] == "driver":
                told = dict(zip((word.removeprefix("--") for word in command[1::2]), command[2::2], strict=True))
                self._result(pod, self.driver.run(told))
                self._end(name, 0)
            else:
                status = self._launch(name, main, command)
                if name in self.processes:  # not lost meanwhile
                    self._result(pod, {})
                    self._end(name, status)
        except Exception as error:
            self.failures.append(f"{name}: {error!r}")
            self._result(pod, {})
            self._end(name, 1)

    def _launch(self, pod, main, command):
        """What KFP's launcher does: start the program with its input, keep what it says of its outputs."""
        split = command.index("--")
        executor_input = json.loads(command[command.index("--executor_input") + 1])
        scratch = self.folder / pod
        scratch.mkdir(exist_ok=True)
        executor_input["outputs"]["outputFile"] = str(scratch / "output_metadata.json")
        for listed in executor_input["outputs"]["artifacts"].values():
            for artifact in listed["artifacts"]:
                Path(artifact["uri"]).parent.mkdir(parents=True, exist_ok=True)
        words = [word.replace("{{$}}", json.dumps(executor_input)) for word in command[split + 1 :]]
        environment = self.environment | {"TMPDIR": str(scratch), "HOME": str(scratch)} | self._variables(main)
        with (self.folder / f"{pod}.log").open("wb") as log:
            process = subprocess.Popen(
                words, stdout=log, stderr=log, env=environment, cwd=scratch, start_new_session=True
            )
            self.processes[pod] = process
            status = process.wait()
        metadata = scratch / "output_metadata.json"
        if status == 0 and metadata.exists():
            execution = self.driver.executions[int(command[command.index("--execution_id") + 1])]
            for key, listed in json.loads(metadata.read_text()).get("artifacts", {}).items():
                execution.outputs[key] |= {"metadata": listed["artifacts"][0].get("metadata", {})}
        return status if status >= 0 else 128 - status

    def _variables(self, main):
        found = {}
        for variable in main.env or []:
            source = variable.value_from.secret_key_ref if variable.value_from else None
            if source is None:
                if variable.value is not None:
                    found[variable.name] = variable.value
                continue
            try:
                data = self.core.read_namespaced_secret(source.name, self.namespace).data or {}
            except client.ApiException as error:
                if error.status != 404 or not source.optional:
                    raise
                data = {}
            if source.key in data:
                found[variable.name] = base64.b64decode(data[source.key]).decode()
            elif not source.optional:
                raise RuntimeError(f"CreateContainerConfigError: secret {source.name} has no key {source.key}")
        return found

    def _result(self, pod, outputs):
        """What Argo's container `wait` reports."""
        labels = {
            "workflows.argoproj.io/workflow": pod.metadata.labels["workflows.argoproj.io/workflow"],
            "workflows.argoproj.io/report-outputs-completed": "true",
        }
        body = {
            "apiVersion": "/".join(ARGO),
            "kind": "WorkflowTaskResult",
            "metadata": {"name": pod.metadata.annotations["workflows.argoproj.io/node-id"], "labels": labels},
            "outputs": {"parameters": [{"name": name, "value": value} for name, value in outputs.items()]},
        }
        self.custom.create_namespaced_custom_object(*ARGO, self.namespace, "workflowtaskresults", body)

    def _end(self, pod, code):
        self._report(pod, {"main": code}, phase="Succeeded" if code == 0 else "Failed")

    def _report(self, pod, state=None, **status):
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if state == "running":
            status["phase"] = "Running"
        if state is not None:
            status["containerStatuses"] = [
                {
                    "name": container.name,
                    "image": container.image,
                    "imageID": "",
                    "ready": state == "running",
                    "restartCount": 0,
                    "state": {"running": {"startedAt": now}}
                    if state == "running"
                    else {
                        "terminated": {
                            "exitCode": (code := state.get(container.name, 0)),
                            "reason": "Error" if code else "Completed",
                            "startedAt": now,
                            "finishedAt": now,
                        }
                    },
                }
                for container in self.pods[pod].spec.containers
            ]
        self.core.patch_namespaced_pod_status(pod, self.namespace, {"status": status})


def _kill(process, number):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
