"""Ask a cluster what a run will need, before it starts. Nothing is changed there but a probe object, which is removed.

`python -m pipelines preflight` prints a line for each finding; with `--json` one object:

    {"ready": false,
     "findings": [{"check": "gpu_pool", "state": "missing", "what": "...", "why": "...", "mend": "..."}, ...]}

`state` is `fine`, `missing` (a run would fail or wait for ever), `warning` (it may), or `unknown` (this account or this
machine cannot find out). `why` says what a run would suffer and `mend` which command helps; both are empty where all is
fine. `ready` is false where something is missing, and only then. The checks come in the order of CHECKS; those of
things that were not asked for are left out.
"""

import contextlib
import io
import json
import os
import shlex
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from arnas import objects
from arnas._image import IMAGE, require_immutable
from arnas.config import validate
from arnas.errors import InvalidInput, Unreachable
from cluster import kubeflow, pods, storage
from cluster.nodes import Pool

KUBERNETES, KFP = (1, 32), (2, 17)  # the oldest versions that will do
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # only pods have it
SHARE = {"cpu": "1", "memory": "1Gi"}  # of a task, where it is not known
STRANGER = (
    "Kubernetes does not know who asks; sign in again, or set KUBECONFIG to a file with an account that it knows."
)

# what KFP's own programs do in the pods of a run: (verb, resource.group, name)
RIGHTS = (
    ("create", "workflowtaskresults.argoproj.io", ""),
    ("patch", "workflowtaskresults.argoproj.io", ""),
    ("get", "pods", ""),
    ("get", "configmaps", "kfp-launcher"),
    ("get", "secrets", "mlpipeline-minio-artifact"),
)


class Needs(BaseModel):
    """What a run will ask the cluster for; most of it in the words of the pipelines' parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str = Field(kubeflow.NAMESPACE, min_length=1, description="Where the run's pods live.")
    service_account: str = Field("pipeline-runner", min_length=1, description="As whom they work.")
    images: list[str] = Field([IMAGE], description="What they run in.")
    gpus: int = Field(0, ge=0, le=64, description="GPUs of a task; 0 for none.")
    accelerator: str = Field("nvidia.com/gpu", description="Resource name of a GPU; MIG slices and AMD have their own.")
    gpu_pool: dict[str, str] = Field({}, description="Labels of the nodes of tasks that have GPUs.")
    gpu_affinity: dict[str, Any] = Field({}, description="A NodeAffinity, beside these labels.")
    gpu_tolerations: list[dict[str, Any]] = Field([], description="Of taints on these nodes, as in a pod.")
    gpu_resources: dict[str, dict[str, str]] = Field(
        {"requests": SHARE, "limits": SHARE}, description="Their requests and limits, without GPUs."
    )
    cpu_pool: dict[str, str] = Field({}, description="Labels of the nodes of all other tasks.")
    cpu_affinity: dict[str, Any] = Field({}, description="A NodeAffinity, beside these labels.")
    cpu_tolerations: list[dict[str, Any]] = Field([], description="Of taints on these nodes.")
    cpu_resources: dict[str, dict[str, str]] = Field({"requests": SHARE, "limits": SHARE}, description="Their own.")
    checkpoints: str = Field("", description="Where checkpoints go; a place in a bucket is tried.")
    endpoint: str = Field("", description="Address of the store; AWS_ENDPOINT_URL replaces it.")
    secret: str = Field("", description="The store's credentials, with keys accesskey and secretkey.")
    private_ca: bool = Field(False, description="Whether its ca.crt signed the store's certificate.")
    queue: str = Field("", description="Kueue's local queue, where pods are queued.")
    trainer: str = Field("", description="TrainingRuntime of Kubeflow Trainer, where training spans nodes.")


@dataclass(frozen=True)
class Finding:
    """What one check found: a sentence, why it matters, and the command that mends it."""

    state: Literal["fine", "missing", "warning", "unknown"]
    what: str
    why: str = ""
    mend: str = ""

    def line(self, check: str) -> str:
        """All of it in one line."""
        line = f"{self.state:<8} {check}: {self.what}"
        return f"{line}; {self.why}. Mend: {self.mend}" if self.state != "fine" else line


class Cluster:
    """A cluster that is asked; nothing here changes it.

    Args:
        api: `kubernetes.client.ApiClient`.
        endpoint: KFP's address, where `kfp` does not find it by itself.
    """

    def __init__(self, api: Any, endpoint: str | None = None):
        from kubernetes import client

        self.endpoint = endpoint
        self.core = client.CoreV1Api(api)
        self.version = client.VersionApi(api)
        self.apis = client.ApisApi(api)
        self.custom = client.CustomObjectsApi(api)
        self.reviews = client.AuthorizationV1Api(api)
        self.identity = client.AuthenticationV1Api(api)

    @cached_property
    def user(self) -> str:
        """Who asks; whoever is signed in may ask that.

        Raises:
            InvalidInput: Kubernetes does not know.
        """
        from kubernetes.client import ApiException

        try:
            return str(self.identity.create_self_subject_review({}, **_IN_TIME).status.user_info.username)
        except ApiException as error:
            if error.status in (401, 403):
                raise InvalidInput(STRANGER) from None
            raise

    @cached_property
    def groups(self) -> dict[str, str]:
        """API groups that are served, with the version that the cluster prefers."""
        found = self.apis.get_api_versions(**_IN_TIME).groups
        return {group.name: group.preferred_version.version for group in found}


Check = Callable[[Cluster, Needs], Finding | None]
_IN_TIME: Any = {"_request_timeout": pods.TIMEOUT}


def run(cluster: Cluster, needs: Needs, checks: tuple[Check, ...] | None = None) -> dict[str, Finding]:
    """What every check found (or each of `checks`), by the check's name.

    Raises:
        InvalidInput: The cluster does not answer at all, or does not know who asks.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    findings = {}
    for check in checks or CHECKS:
        try:
            finding = check(cluster, needs)
        except ApiException as error:
            if not error.status:  # the certificate is not trusted
                raise InvalidInput(f"Kubernetes cannot be asked ({_said(error)}); mend the kubeconfig.") from None
            if error.status == 401:
                raise InvalidInput(STRANGER) from None
            what = f"{cluster.user} may not ask" if error.status == 403 else f"Kubernetes answers {_said(error)}"
            mend = "kubectl auth whoami; ask again with an account that may"
            finding = Finding("unknown", what, "whether a run would go well is not known", mend)
        except HTTPError as error:
            raise InvalidInput(f"Kubernetes does not answer ({kubeflow.reason(error)}); mend the kubeconfig.") from None
        if finding:
            findings[check.__name__] = finding
    return findings


def require(path: str | Path, **told: Any) -> None:
    """Ask as a task of a run, as whom and where that works; print a line for each finding, and write them as JSON.

    Args:
        path: File to write.
        told: The other fields of Needs, but for the images: all tasks of a run have that of this one.

    Raises:
        InvalidInput: Something is missing; nothing was written.
    """
    cluster = Cluster(pods.connect())
    place, _, account = cluster.user.removeprefix("system:serviceaccount:").partition(":")
    told |= {"namespace": place, "service_account": account}
    with contextlib.suppress(*pods.silence()):  # KFP needs the right to look; the check of rights says so
        told |= {"images": [pods.image(pod)]} if (pod := pods.own(cluster.core, place)) else {}
    needs = validate(Needs, told, "preflight")
    findings = run(cluster, needs, tuple(check for check in CHECKS if check is not kfp))  # it has started this task
    for check, finding in findings.items():
        print(finding.line(check), flush=True)
    if not ready(findings):
        missing = [finding.what for finding in findings.values() if finding.state == "missing"]
        raise InvalidInput(f"The cluster lacks what this run needs: {'; '.join(missing)}.")
    Path(path).write_text(as_json(findings), encoding="utf-8")


def ready(findings: dict[str, Finding]) -> bool:
    """Whether nothing is known to be missing."""
    return all(finding.state != "missing" for finding in findings.values())


def as_json(findings: dict[str, Finding]) -> str:
    """The findings as one JSON object; the module's docstring has its form."""
    listed = [{"check": name} | vars(finding) for name, finding in findings.items()]
    return json.dumps({"ready": ready(findings), "findings": listed}, indent=2)


# ------------------------------------------------------------------------------------------------------------- checks
# Each looks at one thing and returns what it found, or None where it was not asked for. It may only read, ask for a
# review or a dry run; what Kubernetes refuses to tell it need not handle.


def kubernetes(cluster: Cluster, needs: Needs) -> Finding:
    """Is Kubernetes new enough?"""
    try:
        told = _there(lambda: cluster.version.get_code(**_IN_TIME))
        version = int(told.major), int(told.minor.rstrip("+"))
    except (AttributeError, TypeError, ValueError):
        raise InvalidInput("What answers where the kubeconfig points is not Kubernetes; mend its `server`.") from None
    what = f"Kubernetes is {told.git_version}"
    if version >= KUBERNETES:
        return Finding("fine", what)
    return Finding("missing", what, f"{_dotted(KUBERNETES)} is the oldest that will do", "upgrade the cluster")


def kfp(cluster: Cluster, needs: Needs) -> Finding:
    """Does KFP answer, and is it new enough?"""
    why = "runs are submitted to it"
    try:
        client = kubeflow.connect(cluster.endpoint)
        version = kubeflow.version(client)
    except InvalidInput as error:
        mend = "kubectl -n kubeflow get pods -l app=ml-pipeline"
        return Finding("missing", str(error).rstrip("."), why, mend)
    if version is None:
        mend = "kubectl -n kubeflow get deployment ml-pipeline -o jsonpath='{..image}'"
        return Finding("unknown", "KFP answers, but does not tell its version", f"{_dotted(KFP)} is needed", mend)
    if version < KFP:
        mend = f"install KFP {_dotted(KFP)} or later"
        return Finding("missing", f"KFP is {_dotted(version)}", "it may not understand the compiled pipelines", mend)
    return Finding("fine", f"KFP answers, and is {_dotted(version)}")


def namespace(cluster: Cluster, needs: Needs) -> Finding:
    """Is there the namespace?"""
    if _there(lambda: cluster.core.read_namespace(needs.namespace, **_IN_TIME)):
        return Finding("fine", f"There is a namespace {needs.namespace}")
    mend = f"kubectl create namespace {needs.namespace}, or give --namespace"
    return Finding("missing", f"There is no namespace {needs.namespace}", "a run's pods live there", mend)


def account(cluster: Cluster, needs: Needs) -> Finding:
    """Is there the service account?"""
    name, place = needs.service_account, needs.namespace
    if _there(lambda: cluster.core.read_namespaced_service_account(name, place, **_IN_TIME)):
        return Finding("fine", f"There is a service account {name}")
    mend = f"kubectl -n {place} create serviceaccount {name}, or give --service-account"
    return Finding("missing", f"There is no service account {name} in {place}", "a run's pods work as it", mend)


def rights(cluster: Cluster, needs: Needs) -> Finding:
    """May the service account do what KFP's programs do in its pods?"""
    user = f"system:serviceaccount:{needs.namespace}:{needs.service_account}"
    lacking = []
    for verb, thing, name in RIGHTS:
        resource, _, group = thing.partition(".")
        attributes = {"namespace": needs.namespace, "group": group, "resource": resource, "name": name, "verb": verb}
        spec: dict[str, Any] = {"resourceAttributes": attributes}
        if cluster.user == user:
            answer = cluster.reviews.create_self_subject_access_review({"spec": spec}, **_IN_TIME)
        else:
            groups = ["system:serviceaccounts", f"system:serviceaccounts:{needs.namespace}", "system:authenticated"]
            about = {"spec": spec | {"user": user, "groups": groups}}
            answer = cluster.reviews.create_subject_access_review(about, **_IN_TIME)
        if not answer.status.allowed:
            lacking.append(f"{verb} {thing}")
    if not lacking:
        return Finding("fine", f"{needs.service_account} has the rights that a run needs")
    first = lacking[0].split()
    mend = (
        f"kubectl -n {needs.namespace} create role arnas-run --verb={first[0]} --resource={first[1]}; kubectl -n "
        f"{needs.namespace} create rolebinding arnas-run --role=arnas-run --serviceaccount={needs.namespace}:"
        f"{needs.service_account}"
    )
    why = "KFP's programs in the pods would be refused"
    return Finding("missing", f"{needs.service_account} may not {', '.join(lacking)}", why, mend)


def gpu_pool(cluster: Cluster, needs: Needs) -> Finding | None:
    """Is there a node that a task with GPUs fits on?"""
    if not needs.gpus:
        return None
    name, why = needs.accelerator, "a task that asks for it waits for ever"
    show = "kubectl get nodes -o custom-columns=NAME:.metadata.name,OFFERS:.status.allocatable"
    nodes = [node for node in cluster.core.list_node(**_IN_TIME).items if _gpus(node, name)]
    if not nodes:
        mend = f"{show}; install the device plugin, or choose another accelerator"
        return Finding("missing", f"No node offers {name}", why, mend)
    pool = Pool(needs.gpu_pool, needs.gpu_affinity, needs.gpu_tolerations)
    if found := _closed(nodes, pool, f"node that offers {name}", why):
        return found
    nodes = _open(nodes, pool)
    most = max(_gpus(node, name) for node in nodes)
    if most < needs.gpus:
        what = f"No node offers {needs.gpus} of {name}, the largest has {most}"
        return Finding("missing", what, why, f"{show}; choose gpus={most}")
    fit = [node.metadata.name for node in nodes if _gpus(node, name) >= needs.gpus]
    return Finding("fine", f"{len(fit)} nodes offer {needs.gpus} of {name} or more, such as {fit[0]}")


def cpu_pool(cluster: Cluster, needs: Needs) -> Finding:
    """Is there a node for the other tasks?"""
    nodes = cluster.core.list_node(**_IN_TIME).items
    pool = Pool(needs.cpu_pool, needs.cpu_affinity, needs.cpu_tolerations)
    if found := _closed(nodes, pool, "node", "data preparation and report wait for ever"):
        return found
    return Finding("fine", f"{len(_open(nodes, pool))} nodes take tasks without GPUs")


def quota(cluster: Cluster, needs: Needs) -> Finding | None:
    """Does the namespace's quota leave room for the GPUs?"""
    from kubernetes.utils.quantity import parse_quantity

    if not needs.gpus:
        return None
    key = f"requests.{needs.accelerator}"
    for found in cluster.core.list_namespaced_resource_quota(needs.namespace, **_IN_TIME).items:
        hard, used = found.status.hard or found.spec.hard or {}, found.status.used or {}
        if key in hard and (left := parse_quantity(hard[key]) - parse_quantity(used.get(key, "0"))) < needs.gpus:
            what = f"Quota {found.metadata.name} leaves {left} of {needs.accelerator}, and a task asks for {needs.gpus}"
            mend = f"kubectl -n {needs.namespace} describe quota {found.metadata.name}"
            return Finding("missing", what, "Kubernetes would refuse its pod", mend)
    return Finding("fine", f"No quota of {needs.namespace} keeps {needs.gpus} of {needs.accelerator} away")


def secret(cluster: Cluster, needs: Needs) -> Finding | None:
    """Are the store's credentials there?"""
    if not needs.secret or not objects.is_place(needs.checkpoints):
        return None
    why, keys = "tasks read from it who they are at the store", [*storage.KEYS]
    make = f"kubectl -n {needs.namespace} create secret generic {needs.secret}" + "".join(
        f" --from-literal={key}=..." for key in storage.KEYS
    )
    if needs.private_ca:
        keys, make = [*keys, "ca.crt"], f"{make} --from-file=ca.crt=FILE"
    found = _there(lambda: cluster.core.read_namespaced_secret(needs.secret, needs.namespace, **_IN_TIME))
    if not found:
        return Finding("missing", f"There is no secret {needs.secret} in {needs.namespace}", why, make)
    empty = [key for key in keys if not (found.data or {}).get(key)]
    if empty:
        mend = f"kubectl -n {needs.namespace} delete secret {needs.secret}; {make}"
        return Finding("missing", f"Secret {needs.secret} has no key {' and no key '.join(empty)}", why, mend)
    return Finding("fine", f"Secret {needs.secret} has the keys {' and '.join(keys)}")


def store(cluster: Cluster, needs: Needs) -> Finding | None:
    """Can an object be written, read and removed where checkpoints go?"""
    if not objects.is_place(needs.checkpoints):
        return None
    why = "checkpoints and their resumption depend on it"
    place = cluster.core, needs.namespace, needs.secret, needs.endpoint, needs.private_ca
    try:
        with storage.environment(*place) as whose, contextlib.redirect_stderr(io.StringIO()):
            objects.Bucket(needs.checkpoints, patience=lambda: 0).probe()
    except Unreachable:
        address = os.environ.get("AWS_ENDPOINT_URL", needs.endpoint)
        what = f"The store {address} does not answer"
        if ACCOUNT.exists():
            return Finding("missing", what, why, "kubectl get pods,services -A | grep -E 'minio|seaweedfs'")
        return Finding("unknown", f"{what} here, outside of the cluster", why, storage.way_to(address))
    except InvalidInput as error:
        return Finding(
            "missing", str(error).rstrip("."), why, f"kubectl -n {needs.namespace} get secret {needs.secret}"
        )
    return Finding("fine", f"An object was written, read and removed at {needs.checkpoints}, with {whose} credentials")


def image(cluster: Cluster, needs: Needs) -> Finding:
    """Does the name of each image always mean the same image?"""
    try:
        for name in needs.images:
            require_immutable(name)
    except InvalidInput as error:
        why = "KFP's cache and retried pods would mix results of different code"
        mend = f"python -m pipelines compile --image {IMAGE} --output DIR"
        return Finding("missing", str(error).partition(";")[0].capitalize(), why, mend)
    return Finding("fine", f"{' and '.join(needs.images) or 'No image'} always means the same content")


def retries(cluster: Cluster, needs: Needs) -> Finding:
    """Are pods tried again that vanish: preempted, drained, or with their node?"""
    name, place = "workflow-controller-configmap", kubeflow.NAMESPACE
    found = _there(lambda: cluster.core.read_namespaced_config_map(name, place, **_IN_TIME))
    if not found:
        mend = "kubectl get configmaps -A | grep workflow-controller"
        return Finding(
            "unknown", f"There is no {name} in {place}", "whether a vanished pod is tried again stands there", mend
        )
    try:
        defaults = _as_argo_reads((found.data or {}).get("workflowDefaults", "")) or {}
        spec = defaults.get("spec") or {}
        template = spec.get("templateDefaults") or {}
        strategy = template.get("retryStrategy") or {}
    except (AttributeError, yaml.YAMLError):
        what, mend = f"workflowDefaults of {name} is no workflow", f"kubectl -n {place} edit configmap {name}"
        return Finding("missing", what, "Argo's controller ends as it reads that, and no run goes on", mend)
    if strategy.get("retryPolicy") in ("Always", "OnError"):
        return Finding("fine", "A pod that vanishes is tried again")
    template = template | {"retryStrategy": {"limit": "0"} | strategy | {"retryPolicy": "Always"}}
    defaults = defaults | {"spec": spec | {"templateDefaults": template}}  # a site's own stay
    what, why = (
        "A pod that vanishes (preempted, drained) is not tried again",
        "it ends the run, until someone retries that",
    )
    patch = shlex.quote(json.dumps({"data": {"workflowDefaults": json.dumps(defaults)}}))
    mend = f"kubectl -n {place} patch configmap {name} --type merge -p {patch}"
    return Finding("warning", what, why, mend)


def queue(cluster: Cluster, needs: Needs) -> Finding | None:
    """Is there the queue of Kueue?"""
    if not needs.queue:
        return None
    group, why = "kueue.x-k8s.io", "pods that name a queue wait for it for ever"
    if group not in cluster.groups:
        mend = "install Kueue, or leave the queue out"
        return Finding("missing", "Kueue is not installed", why, mend)
    where = (group, cluster.groups[group], needs.namespace, "localqueues", needs.queue)
    found = _there(lambda: cluster.custom.get_namespaced_custom_object(*where, **_IN_TIME))
    if not found:
        mend = f"kubectl -n {needs.namespace} get localqueues"
        return Finding("missing", f"There is no queue {needs.queue} in {needs.namespace}", why, mend)
    for condition in found.get("status", {}).get("conditions", []):
        if condition["type"] == "Active" and condition["status"] == "False":
            mend = f"kubectl -n {needs.namespace} describe localqueue {needs.queue}"
            return Finding(
                "missing", f"Queue {needs.queue} is not active: {condition['message']}".rstrip("."), why, mend
            )
    return Finding("fine", f"There is a queue {needs.queue}")


def trainer(cluster: Cluster, needs: Needs) -> Finding | None:
    """Is there the runtime of Kubeflow Trainer?"""
    if not needs.trainer:
        return None
    group, why = "trainer.kubeflow.org", "training over several nodes is a job of it"
    if group not in cluster.groups:
        return Finding("missing", "Kubeflow Trainer v2 is not installed", why, "install it, or train on one node")
    where = (group, cluster.groups[group], needs.namespace, "trainingruntimes", needs.trainer)
    if _there(lambda: cluster.custom.get_namespaced_custom_object(*where, **_IN_TIME)):
        return Finding("fine", f"There is a training runtime {needs.trainer}")
    mend = f"kubectl apply -k manifests/components/trainer; kubectl -n {needs.namespace} get trainingruntimes"
    return Finding("missing", f"There is no training runtime {needs.trainer} in {needs.namespace}", why, mend)


def pod(cluster: Cluster, needs: Needs) -> Finding:
    """Would Kubernetes accept a pod like those of a run?"""
    from kubernetes.client import ApiException

    try:
        cluster.core.create_namespaced_pod(needs.namespace, _pod(needs), dry_run="All", **_IN_TIME)
    except ApiException as error:
        message = _said(error)
        if error.status not in (403, 422) or "cannot create resource" in message:
            raise
        mend = (
            f"kubectl -n {needs.namespace} describe quota,limitrange; kubectl get namespace {needs.namespace} -o yaml"
        )
        return Finding("missing", f"A pod is refused: {message}".rstrip("."), "every task is such a pod", mend)
    return Finding("fine", f"A pod with our security settings and requests is accepted in {needs.namespace}")


CHECKS: tuple[Check, ...] = (
    kubernetes,
    kfp,
    namespace,
    account,
    rights,
    gpu_pool,
    cpu_pool,
    quota,
    secret,
    store,
    image,
    retries,
    queue,
    trainer,
    pod,
)

# ------------------------------------------------------------------------------------------------------------ helpers


def _as_argo_reads(text: str) -> Any:
    """An entry of its ConfigMap: one line stands behind the name, where a mapping needs braces; more stand below it."""
    if "\n" in text:
        text = "\n" + textwrap.indent(text.strip("\n"), "  ")
    return yaml.safe_load(f"entry: {text}")["entry"]


def _there(read: Any) -> Any:
    """What is read, or None where it does not exist."""
    from kubernetes.client import ApiException

    try:
        return read()
    except ApiException as error:
        if error.status == 404:
            return None
        raise


def _said(error: Any) -> str:
    return kubeflow.reason(error).partition(" ")[2]


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def _gpus(node: Any, name: str) -> int:
    return int((node.status.allocatable or {}).get(name, 0))


def _closed(nodes: list[Any], pool: Pool, kind: str, why: str) -> Finding | None:
    """What is missing where no node of a pool takes a new pod."""
    mine = [node for node in nodes if pool.holds(node)]
    if not mine:
        words = " ".join(f"{key}={value}" for key, value in pool.labels.items())
        what = f"No {kind} has the labels {words}" if words else f"There is no {kind}"
        if pool.affinity:
            what = f"No {kind} matches the labels {words or '(none)'} and the affinity {json.dumps(pool.affinity)}"
        mend = f"kubectl get nodes --show-labels; kubectl label node NODE {words or 'KEY=VALUE'}"
        return Finding("missing", what, why, mend)
    if not _open(mine, pool):
        name = mine[0].metadata.name
        what = f"Every {kind} of the pool keeps the task away ({name}: {pool.obstacle(mine[0])})"
        return Finding("missing", what, why, f"kubectl describe node {name}; add a toleration, or uncordon it")
    return None


def _open(nodes: list[Any], pool: Pool) -> list[Any]:
    """The nodes of a pool that take a new pod."""
    return [node for node in nodes if pool.holds(node) and not pool.obstacle(node)]


def _pod(needs: Needs) -> dict[str, Any]:
    """A pod like those of a run, for a dry run."""
    pool, affinity, tolerations, resources = (
        (needs.gpu_pool, needs.gpu_affinity, needs.gpu_tolerations, needs.gpu_resources)
        if needs.gpus
        else (needs.cpu_pool, needs.cpu_affinity, needs.cpu_tolerations, needs.cpu_resources)
    )
    gpus = {"limits": {needs.accelerator: str(needs.gpus)}} if needs.gpus else {}
    container = {
        "name": "main",
        "image": next(iter(needs.images), IMAGE),
        "resources": {kind: resources.get(kind, {}) | gpus.get(kind, {}) for kind in ("requests", "limits")},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    return {
        "metadata": {"generateName": "arnas-preflight-", "labels": {"app.kubernetes.io/part-of": "arnas"}},
        "spec": {
            "serviceAccountName": needs.service_account,
            "restartPolicy": "Never",
            "nodeSelector": pool,
            "affinity": {"nodeAffinity": affinity},
            "tolerations": tolerations,
            "containers": [container],
            "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
        },
    }
