"""Preflight against a real API server and a real MinIO: what is missing is found, and nothing changes."""

import base64
import contextlib
import itertools
import json
import os
import re
import shlex
import ssl
from pathlib import Path
from types import SimpleNamespace

import kubernetes
import pytest
import trustme
import urllib3
import yaml
from constant_server import Constant
from kfp_stand_in import Kfp
from kubernetes.client.rest import RESTClientObject
from minio_server import Server

from arnas.errors import InvalidInput
from cluster import pods, preflight, storage
from components.preflight.component import preflight as preflight_component
from pipelines.__main__ import main

ROOT = Path(__file__).parents[2]
NUMBER = itertools.count(1)
DEFAULTS = {"workflowDefaults": "{spec: {templateDefaults: {retryStrategy: {limit: '0', retryPolicy: Always}}}}"}
KINDS = {
    "namespaces": "Namespace",
    "serviceaccounts": "ServiceAccount",
    "secrets": "Secret",
    "nodes": "Node",
    "resourcequotas": "ResourceQuota",
    "roles": "Role",
    "rolebindings": "RoleBinding",
    "customresourcedefinitions": "CustomResourceDefinition",
}


def api(kubeconfig: Path) -> kubernetes.client.ApiClient:
    configuration = kubernetes.client.Configuration()
    kubernetes.config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    return kubernetes.client.ApiClient(configuration)


class Site:
    """A namespace of its own in the control plane, with all that a run needs; tests take something away."""

    def __init__(self, cluster, store, kfp):
        self.cluster, self.store, self.kfp = cluster, store, kfp
        self.admin = api(cluster.kubeconfig)
        self.name = f"preflight-{next(NUMBER)}"
        self.pool = {"pool": self.name}
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.apply("/api/v1/namespaces", self.name, metadata={"labels": labels})
        self.apply("serviceaccounts", "pipeline-runner")
        _, role, _ = yaml.safe_load_all((ROOT / "manifests/base/runs/account.yaml").read_text())
        self.grant("pipeline-runner", role["rules"])
        self.write_secret(accesskey=store.access_key, secretkey=store.secret_key)
        self.write_nodes("2")
        self.needs = preflight.Needs(
            namespace=self.name,
            gpus=2,
            gpu_pool=self.pool,
            gpu_tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}],
            checkpoints="s3://preflight/arnas",
            endpoint=store.url,
            secret="arnas-s3",
        )

    def apply(self, where, name, subresource="", kind=None, **body):
        """Server-side apply; `where` is a resource of the namespace, or a path of the API."""
        path = where if where.startswith("/") else f"/api/v1/namespaces/{self.name}/{where}"
        kind = kind or KINDS[path.rpartition("/")[2]]
        version = "/".join(path.split("/")[2:4]) if path.startswith("/apis/") else "v1"
        body = {"apiVersion": version, "kind": kind} | body
        body["metadata"] = {"name": name} | body.get("metadata", {})
        self.admin.call_api(
            f"{path}/{name}{subresource}",
            "PATCH",
            query_params=[("fieldManager", "test"), ("force", "true")],
            header_params={"Content-Type": "application/apply-patch+yaml"},
            body=body,
            auth_settings=["BearerToken"],
        )

    def remove(self, path):
        self.admin.call_api(path, "DELETE", auth_settings=["BearerToken"])

    def grant(self, account, rules):
        rights = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{self.name}"
        self.apply(f"{rights}/roles", account, rules=rules)
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}
        subjects = [{"kind": "ServiceAccount", "name": account, "namespace": self.name}]
        self.apply(f"{rights}/rolebindings", account, roleRef=role, subjects=subjects)

    def write_secret(self, **data):
        self.apply(
            "secrets", "arnas-s3", data={key: base64.b64encode(told.encode()).decode() for key, told in data.items()}
        )

    def write_nodes(self, gpus, ready="True", taint="nvidia.com/gpu", **spec):
        """A node with GPUs and a taint, and beside it one for other tasks without either."""
        taints = [{"key": taint, "effect": "NoSchedule"}]
        for kind, about in {"gpu": {"taints": taints} | spec, "cpu": {"taints": []}}.items():
            name, metadata = f"{self.name}-{kind}", {"labels": self.pool}
            for _ in "12":  # a new node has a taint of Kubernetes' own, until it is ready
                self.apply("/api/v1/nodes", name, metadata=metadata, spec=about)
            allocatable = {"cpu": "8"} | ({"nvidia.com/gpu": gpus} if kind == "gpu" else {})
            conditions = [{"type": "Ready", "status": ready if kind == "gpu" else "True"}]
            self.apply("/api/v1/nodes", name, "/status", status={"allocatable": allocatable, "conditions": conditions})

    def write_quota(self, hard, used):
        self.apply("resourcequotas", "limit", spec={"hard": hard})
        self.apply("resourcequotas", "limit", "/status", status={"hard": hard, "used": used})

    def look(self, kubeconfig=None, **changes):
        """Findings, by check."""
        asked = preflight.Cluster(api(kubeconfig or self.cluster.kubeconfig), self.kfp.url)
        return preflight.run(asked, self.needs.model_copy(update=changes))


@pytest.fixture(scope="module")
def store(minio):
    minio.client().make_bucket("preflight")
    return minio


@pytest.fixture(scope="module")
def argo(cluster):
    """The settings of KFP's workflow controller, as a site should have them."""
    core = kubernetes.client.CoreV1Api(api(cluster.kubeconfig))
    with contextlib.suppress(kubernetes.client.ApiException):  # of another test
        core.create_namespace({"metadata": {"name": "kubeflow"}})
    core.create_namespaced_config_map(
        "kubeflow", {"metadata": {"name": "workflow-controller-configmap"}, "data": DEFAULTS}
    )
    yield core
    core.delete_namespaced_config_map("workflow-controller-configmap", "kubeflow")


@pytest.fixture
def site(cluster, store, argo, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "ARNAS_S3_SECRET"):
        monkeypatch.delenv(name, raising=False)
    with Kfp() as kfp:
        site = Site(cluster, store, kfp)
        yield site
        for kind in ("gpu", "cpu"):
            site.remove(f"/api/v1/nodes/{site.name}-{kind}")


@pytest.fixture
def elsewhere(tmp_path):
    """Makes a kubeconfig that points to a server which answers everything with the same."""
    servers = []

    def start(body):
        server = Constant(body)
        servers.append(server.__enter__())
        config = {"current-context": "a", "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}]}
        config |= {"clusters": [{"name": "a", "cluster": {"server": server.url}}], "users": [{"name": "a", "user": {}}]}
        (tmp_path / "elsewhere").write_text(yaml.safe_dump(config))
        return tmp_path / "elsewhere"

    yield start
    for server in servers:
        server.__exit__()


def states(findings):
    return {check: finding.state for check, finding in findings.items()}


def test_where_nothing_is_missing_all_is_fine(site):
    findings = site.look()
    assert {check: finding.what for check, finding in findings.items() if finding.state != "fine"} == {}
    assert set(findings) == {check.__name__ for check in preflight.CHECKS} - {"queue", "trainer"}
    assert preflight.ready(findings)


# ------------------------------------------------------------------------------------------------ what is missing


MISSING = {
    "an old Kubernetes": (
        "kubernetes",
        lambda site, patch: patch.setattr(preflight, "KUBERNETES", (9, 9)),
        {},
        r"Kubernetes is v1\.\d+\.\d+; 9\.9 is the oldest that will do\. Mend: ",
    ),
    "no KFP": (
        "kfp",
        lambda site, patch: patch.setattr(site.kfp, "url", "http://127.0.0.1:9"),
        {},
        r"KFP at http://127\.0\.0\.1:9 does not answer \(.*\).*; runs are submitted to it",
    ),
    "an old KFP": (
        "kfp",
        lambda site, patch: patch.setattr(site.kfp, "health", {"tag_name": "2.5.0-rc.1"}),
        {},
        r"KFP is 2\.5\.0; it may not understand the compiled pipelines\. Mend: install KFP 2\.17",
    ),
    "no namespace": ("namespace", None, {"namespace": "nowhere"}, r"There is no namespace nowhere; .* kubectl create"),
    "no account": ("account", None, {"service_account": "nobody"}, r"no service account nobody in .*kubectl -n \S+ cr"),
    "no rights": (
        "rights",
        lambda site, patch: site.grant(
            "pipeline-runner", [{"apiGroups": [""], "resources": ["pods", "secrets"], "verbs": ["get"]}]
        ),
        {},
        r"may not create workflowtaskresults\.argoproj\.io, patch workflow\S+ get configmaps; .*rolebinding",
    ),
    "no node of that resource": (
        "gpu_pool",
        None,
        {"accelerator": "amd.com/gpu"},
        r"No node offers amd\.com/gpu; .*waits",
    ),
    "no node of that pool": (
        "gpu_pool",
        None,
        {"gpu_pool": {"pool": "gold"}},
        r"No node that offers nvidia\.com/gpu has the labels pool=gold; .*kubectl label node NODE pool=gold",
    ),
    "a taint": (
        "gpu_pool",
        None,
        {"gpu_tolerations": []},
        r"of the pool keeps the task away \(\S+: taint nvidia\.com/gpu=:NoSchedule\)",
    ),
    "a taint with another effect than tolerated": (
        "gpu_pool",
        None,
        {"gpu_tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"}]},
        r"taint nvidia\.com/gpu=:NoSchedule",
    ),
    "a cordoned node": (
        "gpu_pool",
        lambda site, patch: site.write_nodes("2", unschedulable=True),
        {},
        r"\(\S+: it is cordoned\)",
    ),
    "a node that is not ready": (
        "gpu_pool",
        lambda site, patch: site.write_nodes("2", ready="False"),
        {},
        r"\(\S+: it is not ready\)",
    ),
    "too few GPUs on a node": (
        "gpu_pool",
        None,
        {"gpus": 3},
        r"No node offers 3 of nvidia\.com/gpu, the largest has 2",
    ),
    "no node for other tasks": ("cpu_pool", None, {"cpu_pool": {"cpu": "none"}}, r"No node has the labels cpu=none"),
    "a quota of GPUs": (
        "quota",
        lambda site, patch: site.write_quota({"requests.nvidia.com/gpu": "4"}, {"requests.nvidia.com/gpu": "3"}),
        {},
        r"Quota limit leaves 1 of nvidia\.com/gpu, and a task asks for 2; .*kubectl -n \S+ describe quota limit",
    ),
    "no secret": (
        "secret",
        None,
        {"secret": "nothing"},
        r"There is no secret nothing in .*kubectl -n \S+ create secret",
    ),
    "no key in it": (
        "secret",
        lambda site, patch: (
            site.remove(f"/api/v1/namespaces/{site.name}/secrets/arnas-s3"),
            site.write_secret(accesskey="me"),
        ),
        {},
        r"Secret arnas-s3 has no key secretkey; tasks read",
    ),
    "wrong credentials": (
        "store",
        lambda site, patch: site.write_secret(accesskey=site.store.access_key, secretkey="planted-secret"),
        {},
        r"does not accept the credentials",
    ),
    "no bucket": ("store", None, {"checkpoints": "s3://absent/arnas"}, r"There is no bucket absent at http"),
    "a mutable image": (
        "image",
        None,
        {"images": ["arnas:1", "registry.example.org/arnas:latest"]},
        r"arnas:latest.*compile --image",
    ),
    "no tag": ("image", None, {"images": ["registry.example.org:5000/arnas"]}, r"arnas' does not say which content"),
    "no Kueue": ("queue", None, {"queue": "gpus"}, r"Kueue is not installed; "),
    "no Trainer": ("trainer", None, {"trainer": "torch-distributed"}, r"Kubeflow Trainer v2 is not installed; "),
    "no room for a pod": (
        "pod",
        lambda site, patch: site.write_quota({"count/pods": "0"}, {"count/pods": "0"}),
        {},
        r"A pod is refused: .*exceeded quota: limit",
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_missing_is_found_and_nothing_else_is(case, site, monkeypatch):
    check, take_away, changes, sentence = MISSING[case]
    if take_away:
        take_away(site, monkeypatch)
    findings = site.look(**changes)
    finding = findings[check]
    assert finding.state == "missing"
    line = finding.line(check)
    assert re.search(sentence, line), line
    assert line.count("\n") == 0
    assert finding.why and finding.mend
    assert not preflight.ready(findings)
    follows = {"namespace": {"account", "rights", "secret", "store", "pod"}, "account": {"rights", "pod"}}
    follows |= {"secret": {"store"}, "quota": {"pod"}}
    others = {name for name, state in states(findings).items() if state == "missing"} - {check}
    assert others <= follows.get(check, set())
    assert "planted-secret" not in preflight.as_json(findings)


@pytest.mark.parametrize("kueue", [True, False], ids=["queue of Kueue", "runtime of Trainer"])
def test_what_kueue_and_trainer_must_have_is_looked_for_where_they_are_installed(kueue, site):
    group, plural, kind, check = (
        ("kueue.x-k8s.io", "localqueues", "LocalQueue", "queue")
        if kueue
        else ("trainer.kubeflow.org", "trainingruntimes", "TrainingRuntime", "trainer")
    )
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    names = {"plural": plural, "singular": kind.lower(), "kind": kind}
    version = {"name": "v1beta1", "served": True, "storage": True, "schema": schema}
    spec = {"group": group, "names": names, "versions": [version]}
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    site.apply(definitions, f"{plural}.{group}", spec=spec | {"scope": "Namespaced"})
    site.cluster.kubectl("wait", "--for=condition=Established", f"crd/{plural}.{group}", "--timeout=30s")
    path = f"/apis/{group}/v1beta1/namespaces/{site.name}/{plural}"
    try:
        assert re.search("There is no .* wanted", site.look(**{check: "wanted"})[check].what)
        site.apply(path, "wanted", kind=kind)
        assert site.look(**{check: "wanted"})[check].state == "fine"
        if kueue:
            reason = {"type": "Active", "status": "False", "message": "Can't submit new workloads to clusterQueue"}
            site.apply(path, "wanted", kind=kind, status={"conditions": [reason]})
            assert site.look(queue="wanted")["queue"].what == f"Queue wanted is not active: {reason['message']}"
    finally:
        site.remove(f"{definitions}/{plural}.{group}")


def test_a_toleration_of_everything_and_one_of_a_value_are_understood(site):
    site.write_nodes("2", taint="dedicated")
    assert site.look()["gpu_pool"].state == "missing"
    assert site.look(gpu_tolerations=[{"operator": "Exists"}])["gpu_pool"].state == "fine"
    assert site.look(gpu_tolerations=[{"key": "dedicated"}])["gpu_pool"].state == "fine"
    assert site.look(gpu_tolerations=[{"key": "dedicated", "value": "x"}])["gpu_pool"].state == "missing"


def affinity(*expressions, fields=()):
    term = {"matchExpressions": list(expressions), "matchFields": list(fields)}
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}


def expression(operator, *values, key="pool"):
    return {"key": key, "operator": operator} | ({"values": list(values)} if values else {})


def test_an_affinity_is_held_against_the_nodes_as_the_scheduler_does(site):
    site.pool = {"pool": site.name, "memory": "80"}
    site.write_nodes("2")
    for state, one in [
        ("fine", expression("In", site.name, "other")),
        ("missing", expression("In", "other")),
        ("fine", expression("NotIn", "other")),
        ("missing", expression("NotIn", site.name)),
        ("fine", expression("NotIn", "other", key="absent")),
        ("fine", expression("Exists")),
        ("missing", expression("Exists", key="absent")),
        ("fine", expression("DoesNotExist", key="absent")),
        ("missing", expression("DoesNotExist")),
        ("fine", expression("Gt", "79", key="memory")),
        ("missing", expression("Gt", "80", key="memory")),
        ("fine", expression("Lt", "81", key="memory")),
        ("missing", expression("Lt", "81", key="absent")),
    ]:
        assert site.look(gpu_affinity=affinity(one))["gpu_pool"].state == state, one
    name = expression("In", f"{site.name}-gpu", key="metadata.name")
    assert site.look(gpu_affinity=affinity(fields=[name]))["gpu_pool"].state == "fine"
    assert site.look(cpu_affinity=affinity(fields=[name]))["cpu_pool"].state == "missing"
    assert site.look(cpu_affinity=affinity())["cpu_pool"].state == "missing"  # an empty term matches nothing


def test_a_pod_asks_for_what_the_tasks_ask_for(site):
    site.write_quota({"limits.memory": "8Gi"}, {"limits.memory": "0"})
    assert site.look()["pod"].state == "fine"
    resources = {"requests": {"memory": "2Gi"}, "limits": {"memory": "16Gi"}}
    assert "exceeded quota" in site.look(gpu_resources=resources)["pod"].what
    assert site.look(gpus=0, gpu_resources=resources)["pod"].state == "fine"


def test_a_run_without_gpus_is_not_asked_for_any(site):
    site.write_nodes("0")
    findings = site.look(gpus=0)
    assert {"gpu_pool", "quota"}.isdisjoint(findings)
    assert preflight.ready(findings)


def test_without_argos_defaults_it_is_warned_of_pods_that_vanish_and_the_command_mends_it(site, argo):
    name = "workflow-controller-configmap"
    argo.replace_namespaced_config_map(name, "kubeflow", {"metadata": {"name": name}})
    findings = site.look()
    assert findings["retries"].state == "warning"
    assert preflight.ready(findings)
    command = shlex.split(findings["retries"].mend)
    assert command[0] == "kubectl"
    site.cluster.kubectl(*command[1:])
    assert site.look()["retries"].state == "fine"


def test_argos_defaults_of_a_site_stay_when_the_command_is_followed(site, argo):
    name = "workflow-controller-configmap"
    theirs = {
        "metadata": {"annotations": {"team": "it's ours"}},
        "spec": {
            "podGC": {"strategy": "OnPodSuccess"},
            "templateDefaults": {"timeout": "9h", "retryStrategy": {"limit": "2", "retryPolicy": "OnFailure"}},
        },
    }
    data = {"workflowDefaults": yaml.safe_dump(theirs)}
    argo.replace_namespaced_config_map(name, "kubeflow", {"metadata": {"name": name}, "data": data})
    site.cluster.kubectl(*shlex.split(site.look()["retries"].mend)[1:])
    theirs["spec"]["templateDefaults"]["retryStrategy"]["retryPolicy"] = "Always"
    left = argo.read_namespaced_config_map(name, "kubeflow").data["workflowDefaults"]
    argo.replace_namespaced_config_map(name, "kubeflow", {"metadata": {"name": name}, "data": DEFAULTS})
    assert yaml.safe_load(left) == theirs


@pytest.mark.parametrize("text", ["{spec: [", "a word", "{spec: {templateDefaults: word}}", "spec: {}"])
def test_defaults_that_end_argo_are_said_to(text, site, argo):
    name = "workflow-controller-configmap"
    data = {"workflowDefaults": text}
    argo.replace_namespaced_config_map(name, "kubeflow", {"metadata": {"name": name}, "data": data})
    finding = site.look()["retries"]
    argo.replace_namespaced_config_map(name, "kubeflow", {"metadata": {"name": name}, "data": DEFAULTS})
    assert finding.state == "missing"
    assert finding.what == "workflowDefaults of workflow-controller-configmap is no workflow"


@pytest.mark.parametrize("text", ["{}", "spec: {}\n", "spec:\n  podGC: {}", ""])
def test_defaults_that_argo_reads_are_read(text, site, argo):
    name = "workflow-controller-configmap"
    data = {"workflowDefaults": text}
    argo.replace_namespaced_config_map(name, "kubeflow", {"metadata": {"name": name}, "data": data})
    finding = site.look()["retries"]
    argo.replace_namespaced_config_map(name, "kubeflow", {"metadata": {"name": name}, "data": DEFAULTS})
    assert finding.state == "warning"


# --------------------------------------------------------------------------------------------- what cannot be known


def test_a_store_that_only_pods_reach_is_unknown_from_outside_and_missing_inside(site, monkeypatch, tmp_path):
    address = "http://minio-service.kubeflow.svc:9000"
    outside = site.look(endpoint=address)["store"]
    assert outside.state == "unknown"
    assert "kubectl -n kubeflow port-forward svc/minio-service 9000:9000" in outside.mend
    monkeypatch.setattr(preflight, "ACCOUNT", tmp_path)
    assert site.look(endpoint=address)["store"].state == "missing"


@pytest.mark.parametrize(
    ("address", "way"),
    [
        (
            "https://s3.arnas",
            "kubectl -n arnas port-forward svc/s3 8443:443, and set AWS_ENDPOINT_URL=https://localhost:8443",
        ),
        ("http://s3.arnas.svc.cluster.local", "kubectl -n arnas port-forward svc/s3 8080:80, and set "),
        ("https://s3.eu-central-1.amazonaws.com", "curl -I https://s3.eu-central-1.amazonaws.com says more"),
        ("http://10.0.0.7:9000", "curl -I http://10.0.0.7:9000 says more"),
    ],
)
def test_a_store_is_forwarded_only_where_it_is_a_service(address, way):
    assert storage.way_to(address).startswith(way)


def test_the_credentials_that_are_tried_are_the_secrets_by_whatever_way_the_store_is_reached(site, monkeypatch):
    for name, value in site.store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ARNAS_S3_SECRET", "/nowhere")
    away = "http://minio-service.kubeflow.svc:9000"
    found = site.look(endpoint=away)["store"]
    assert (found.state, found.what.rpartition(", ")[2]) == ("fine", "with the secret's credentials")
    site.write_secret(accesskey="me", secretkey="wrong")
    assert "does not accept the credentials" in site.look(endpoint=away)["store"].what
    assert os.environ["AWS_ACCESS_KEY_ID"] == site.store.access_key


def test_seaweedfs_is_a_store_as_good_and_says_the_same(site, seaweedfs, monkeypatch):
    seaweedfs.lead(monkeypatch, "preflight")
    site.write_secret(accesskey=seaweedfs.access_key, secretkey=seaweedfs.secret_key)
    assert site.look(endpoint=seaweedfs.url)["store"].state == "fine"
    assert list(seaweedfs.client().list_objects("preflight", recursive=True)) == []
    absent = site.look(endpoint=seaweedfs.url, checkpoints="s3://absent/arnas")["store"]
    assert (absent.state, absent.what.partition(" at ")[0]) == ("missing", "There is no bucket absent")
    site.write_secret(accesskey=seaweedfs.access_key, secretkey="wrong")
    assert "does not accept the credentials" in site.look(endpoint=seaweedfs.url)["store"].what


def test_where_the_secret_must_not_be_read_the_own_credentials_stand_in_and_it_is_said(site, monkeypatch):
    for name, value in site.store.environment.items():
        monkeypatch.setenv(name, value)
    site.apply("serviceaccounts", "visitor")
    found = site.look(site.cluster.kubeconfig_of("visitor", site.name))["store"]
    assert (found.state, found.what.rpartition(", ")[2]) == ("fine", "with this machine's own credentials")


def test_a_private_authority_is_taken_from_the_secret_and_missed_where_it_is_not_there(site, tmp_path):
    authority = trustme.CA()
    assert re.search("has no key ca.crt;.*--from-file=ca.crt=FILE", site.look(private_ca=True)["secret"].line("secret"))
    with Server(tmp_path, authority.issue_cert("127.0.0.1")) as store:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        store.client(urllib3.PoolManager(ssl_context=context)).make_bucket("preflight")
        keys = {"accesskey": store.access_key, "secretkey": store.secret_key}
        site.write_secret(**keys)
        assert "cannot be trusted" in site.look(endpoint=store.url)["store"].what
        site.write_secret(**keys, **{"ca.crt": authority.cert_pem.bytes().decode()})
        findings = site.look(endpoint=store.url, private_ca=True)
    assert states(findings)["secret"] == states(findings)["store"] == "fine"


def test_a_kfp_without_a_version_is_unknown(site):
    site.kfp.health = {"tag_name": "unknown"}
    assert site.look()["kfp"].state == "unknown"


def test_an_account_that_may_not_look_finds_that_out_and_calls_nothing_missing(site):
    site.apply("serviceaccounts", "visitor")
    findings = site.look(site.cluster.kubeconfig_of("visitor", site.name))
    assert set(states(findings).values()) <= {"fine", "unknown"}
    assert {"namespace", "account", "rights", "gpu_pool", "secret", "pod"} <= {
        check for check, finding in findings.items() if finding.state == "unknown"
    }
    assert f"system:serviceaccount:{site.name}:visitor may not" in findings["gpu_pool"].line("gpu_pool")


def test_the_runs_own_account_may_ask_for_its_own_rights(site):
    kubeconfig = site.cluster.kubeconfig_of("pipeline-runner", site.name)
    findings = site.look(kubeconfig)
    assert findings["rights"].state == findings["secret"].state == findings["store"].state == "fine"
    site.grant("pipeline-runner", [])
    assert site.look(kubeconfig)["rights"].state == "missing"


def test_a_cluster_that_does_not_answer_is_bad_input(site, tmp_path):
    dead = yaml.safe_load(site.cluster.kubeconfig.read_text())
    dead["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    (tmp_path / "config").write_text(yaml.safe_dump(dead))
    with pytest.raises(InvalidInput, match=r"Kubernetes does not answer \(.+\); mend the kubeconfig"):
        site.look(tmp_path / "config")


def test_who_kubernetes_does_not_know_is_bad_input_and_no_readiness(site, tmp_path, monkeypatch, capsys):
    stranger = yaml.safe_load(site.cluster.kubeconfig.read_text())
    stranger["users"][0]["user"] = {"token": "expired"}
    (tmp_path / "config").write_text(yaml.safe_dump(stranger))
    assert told(site, "--json", monkeypatch=monkeypatch, kubeconfig=tmp_path / "config") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Kubernetes does not know who asks; ") and captured.err.count("\n") == 1
    with pytest.raises(InvalidInput, match="does not know who asks"):
        str(preflight.Cluster(api(tmp_path / "config")).user)


@pytest.mark.parametrize("body", [b"<html>Welcome</html>", b"null", b"{}"])
def test_a_server_that_is_not_kubernetes_is_bad_input(body, site, elsewhere):
    with pytest.raises(InvalidInput, match="where the kubeconfig points is not Kubernetes"):
        site.look(elsewhere(body))


@pytest.mark.parametrize("text", [b"a: [", b"a plain string", b"[1]", b"\xff\xfe\x00", b"clusters: x\nusers: 1", None])
def test_a_damaged_kubeconfig_is_bad_input(text, tmp_path, monkeypatch):
    if text:
        (tmp_path / "config").write_bytes(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config" if text else tmp_path))  # a folder
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InvalidInput, match="There is no kubeconfig that can be used; set KUBECONFIG"):
        pods.connect()


def test_without_a_kubeconfig_it_is_said_how_to_give_one(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InvalidInput, match="There is no kubeconfig that can be used; set KUBECONFIG"):
        pods.connect()


# --------------------------------------------------------------------------------------------------- nothing changes


def test_only_reads_reviews_and_dry_runs_are_asked_for_and_the_probe_is_gone(site, monkeypatch):
    asked = []
    request = RESTClientObject.request

    def watched(self, method, url, *arguments, **named):
        asked.append((method, url, named.get("query_params") or []))
        return request(self, method, url, *arguments, **named)

    monkeypatch.setattr(RESTClientObject, "request", watched)
    before = site.cluster.kubectl("get", "all,secrets,configmaps,resourcequotas", "-A", "-o", "json")
    site.look(queue="gpus", trainer="torch-distributed")
    assert len(asked) > 10
    for method, url, query in asked:
        reviewed = re.search(r"/(subjectaccessreviews|selfsubjectaccessreviews|selfsubjectreviews)$", url)
        assert method == "GET" or reviewed or ("dryRun", "All") in query, f"{method} {url}"
    assert site.cluster.kubectl("get", "all,secrets,configmaps,resourcequotas", "-A", "-o", "json") == before
    assert {method for method, _ in site.kfp.requests} == {"GET"}
    assert list(site.store.client().list_objects("preflight", recursive=True)) == []


# ------------------------------------------------------------------------------------------------------- the command


def told(site, *options, monkeypatch, kubeconfig=None):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig or site.cluster.kubeconfig))
    words = ["--namespace", site.name, "--endpoint", site.kfp.url, "--parameter", f"endpoint={site.store.url}"]
    words += ["--parameter", "secret=arnas-s3", "--parameter", "checkpoints=s3://preflight/arnas"]
    words += ["--parameter", f"gpu_pool={{pool: {site.name}}}"]
    return main(["preflight", *words, *options])


def test_the_command_has_a_status_for_scripts_and_one_line_a_finding(site, monkeypatch, capsys):
    assert told(site, monkeypatch=monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(preflight.CHECKS) - 2  # neither queue nor trainer were asked for
    assert all(line.startswith("fine ") for line in lines)
    assert told(site, "--parameter", "gpus=8", "--trainer", "torch", monkeypatch=monkeypatch) == 1
    lines = capsys.readouterr().out.splitlines()
    assert {line.split(":")[0].split()[1] for line in lines if line.startswith("missing ")} == {"gpu_pool", "trainer"}


def test_the_command_writes_json_as_documented(site, monkeypatch, capsys):
    assert told(site, "--json", "--parameter", "gpus=8", monkeypatch=monkeypatch) == 1
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"ready", "findings"}
    assert found["ready"] is False
    for finding in found["findings"]:
        assert list(finding) == ["check", "state", "what", "why", "mend"]
        assert bool(finding["mend"]) == bool(finding["why"]) == (finding["state"] != "fine")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--parameter", "gpu=2"], r"no parameter gpu; near it are gpus"),
        (["--parameter", "gpus=two"], r"arnas: gpus = 'two': .*integer"),
        (["--parameter", "gpu_pool=gold"], r"gpu_pool must be of type STRUCT"),
        (["--image", "arnas:latest"], r"arnas:latest' does not say which content"),
        (["--pipeline", "nothing"], r"nothing is no compiled pipeline"),
    ],
)
def test_bad_words_are_refused_before_anyone_is_asked(options, sentence, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert main(["preflight", *options]) == 2
    assert re.search(sentence, capsys.readouterr().err)


def test_a_sites_placement_is_what_is_asked_for(site, tmp_path, monkeypatch, capsys):
    (tmp_path / "site.yaml").write_text("accelerator: amd.com/gpu\ngpu_tasks: {queue: gold}\n")
    assert told(site, "--placement", str(tmp_path / "site.yaml"), monkeypatch=monkeypatch) == 1
    lines = capsys.readouterr().out
    assert "missing  queue: Kueue is not installed" in lines
    assert "missing  gpu_pool: No node offers amd.com/gpu;" in lines


# ---------------------------------------------------------------------------------------------- as a task of a run


def task(site, path, *, monkeypatch, **told):
    monkeypatch.setenv("KUBECONFIG", str(site.cluster.kubeconfig_of("pipeline-runner", site.name)))
    given = {"checkpoints": "s3://preflight/arnas", "endpoint": site.store.url, "secret": "arnas-s3"} | told
    preflight_component.python_func(SimpleNamespace(path=str(path)), **given)


def test_as_a_task_it_asks_for_its_own_account_and_leaves_its_findings(site, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    task(site, tmp_path / "findings", monkeypatch=monkeypatch)
    found = {finding["check"]: finding for finding in json.loads((tmp_path / "findings").read_text())["findings"]}
    assert found["rights"]["state"] == found["store"]["state"] == "fine"
    assert "kfp" not in found
    assert "fine     rights: pipeline-runner has the rights that a run needs" in capsys.readouterr().out


def test_as_a_task_it_asks_for_the_image_that_it_runs_in_itself(site, tmp_path, monkeypatch):
    image = "registry.example.org/arnas:0.1.0"
    pod = preflight._pod(site.needs.model_copy(update={"images": [image]}))
    made = kubernetes.client.CoreV1Api(site.admin).create_namespaced_pod(site.name, pod)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    monkeypatch.setenv("KFP_POD_NAME", made.metadata.name)
    task(site, tmp_path / "findings", monkeypatch=monkeypatch)
    found = {finding["check"]: finding for finding in json.loads((tmp_path / "findings").read_text())["findings"]}
    assert found["image"]["what"] == f"{image} always means the same content"
    monkeypatch.setenv("KFP_POD_NAME", "gone")
    task(site, tmp_path / "others", monkeypatch=monkeypatch)
    assert json.loads((tmp_path / "others").read_text())["ready"]


def test_as_a_task_it_fails_with_a_sentence_where_something_is_missing(site, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    sentence = r"The cluster lacks what this run needs: There is no bucket absent at \S+; .*Kueue is not installed\."
    with pytest.raises(InvalidInput, match=sentence):
        task(site, tmp_path / "findings", checkpoints="s3://absent/arnas", queue="gpus", monkeypatch=monkeypatch)
    assert not (tmp_path / "findings").exists()
