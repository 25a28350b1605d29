"""Argo's real workflow controller, with the settings that KFP gives it."""

import json
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

VERSION = "v3.7.4"
PATIENCE = 60  # seconds; it starts in less than one
KINDS = ("Workflow", "WorkflowTaskResult", "WorkflowTaskSet", "WorkflowTemplate", "ClusterWorkflowTemplate")
KINDS += ("CronWorkflow", "WorkflowEventBinding", "WorkflowArtifactGCTask")

#: What KFP's workflow-controller-configmap says of Argo's own containers
EXECUTOR = {
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
}


def binary():
    """Path of the controller: what WORKFLOW_CONTROLLER names, else in our cache.

    Raises:
        FileNotFoundError: It is not there; the text says how to get it.
    """
    cache = Path(os.environ.get("ARNAS_CACHE") or Path.home() / ".cache" / "arnas")
    path = Path(os.environ.get("WORKFLOW_CONTROLLER") or cache / "bin" / "workflow-controller")
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; `make argo` builds it, or WORKFLOW_CONTROLLER names another one.")
    return path


@contextmanager
def running(cluster, namespace, folder, **config):
    """Make a namespace that enforces `restricted`, and run a controller for it alone.

    Args:
        cluster: A control plane.
        namespace: Name of a new namespace.
        folder: Where the controller's log goes.
        config: More entries of its ConfigMap, such as workflowDefaults.

    Raises:
        RuntimeError: The controller did not start, for instance since its ConfigMap is none; the text has its log.
    """
    for kind in KINDS:
        cluster.kubectl("apply", "-f-", stdin=json.dumps(_definition(kind)))
    cluster.kubectl("wait", "--for=condition=established", "crd", "--all", "--timeout=30s")
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    settings = {"executor": json.dumps(EXECUTOR), "metricsConfig": json.dumps({"enabled": False})} | config
    for kind, name, more in (
        ("Namespace", namespace, {"metadata": {"name": namespace, "labels": labels}}),
        ("ServiceAccount", "pipeline-runner", {}),
        ("ConfigMap", "workflow-controller-configmap", {"data": settings}),
    ):
        metadata = {"name": name} | ({"namespace": namespace} if kind != "Namespace" else {})
        object_ = {"apiVersion": "v1", "kind": kind, "metadata": metadata} | more
        cluster.kubectl("create", "-f-", stdin=json.dumps(object_))
    command = [binary(), f"--kubeconfig={cluster.kubeconfig}", f"--namespace={namespace}", "--namespaced"]
    command.append(f"--executor-image=argoexec:{VERSION}")
    log = folder / "workflow-controller.log"
    with log.open("wb") as file:
        # as it is, but quick: it makes a pod anew that vanishes in its first ten seconds, which is no retry
        quick = {"DEFAULT_REQUEUE_TIME": "1s", "RECENTLY_STARTED_POD_DURATION": "0s"}
        environment = os.environ | {"LEADER_ELECTION_DISABLE": "true"} | quick
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=folder)
    try:
        _wait(process, log)
        yield
    finally:
        process.kill()
        process.wait()


def _wait(process, log):
    """Return when the controller has read its settings, which it does not outlive where they are wrong."""
    deadline = time.monotonic() + PATIENCE
    while "Configuration updated" not in (said := log.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Argo's controller did not start:\n{said[-2000:]}")
        time.sleep(0.1)


def _definition(kind):
    plural = f"{kind.lower()}s"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": schema}
    if kind == "WorkflowTaskSet":
        version["subresources"] = {"status": {}}
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    scope = "Cluster" if kind.startswith("Cluster") else "Namespaced"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.argoproj.io"},
        "spec": {"group": "argoproj.io", "names": names, "scope": scope, "versions": [version]},
    }
