"""A real API server takes the manifests, and admits their pods, and those of KFP, where `restricted` is enforced."""

import copy
import json
import re
import shlex

import pytest
import yaml
from kubernetes import client, config
from manifests.kfp_pods import pods
from manifests.rendered import COMPONENTS, MANIFESTS, OVERLAYS, label, objects, pod_specs, text

from pipelines import generate, placement

PIPELINES = [generate.place_of(name) for name in generate.PIPELINES]


@pytest.fixture(scope="module")
def admit(installed):
    """Asks whether a pod may be in the namespace arnas, which enforces `restricted`."""
    installed.kubectl("create", "serviceaccount", "worker", "--namespace=arnas")

    with config.new_client_from_config(str(installed.kubeconfig)) as api:
        core = client.CoreV1Api(api)

        def admit(spec, labels=None):
            pod = {"metadata": {"name": "asked", "labels": labels}, "spec": spec | {"serviceAccountName": "worker"}}
            core.create_namespaced_pod("arnas", pod, dry_run="All", field_validation="Strict")

        yield admit


@pytest.mark.parametrize("folder", OVERLAYS + COMPONENTS)
def test_a_control_plane_takes_every_object(installed, define, folder):
    define(folder)
    answer = installed.kubectl("apply", "--server-side", "--dry-run=server", "-f-", stdin=text(folder))
    assert len(answer.splitlines()) == len(objects(folder))


def test_the_page_shows_what_is_printed(installed):
    answer = installed.kubectl("apply", "--dry-run=client", "--output=name", "-f-", stdin=text("overlays/laptop"))
    page = (MANIFESTS.parent / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert re.findall(r"^(\S+) created$", page, re.MULTILINE) == answer.split()


def test_the_launchers_own_configuration_is_saved_and_comes_back(installed, tmp_path):
    """By the commands that the file shows."""
    page = (MANIFESTS / "components/pipeline-root/kfp-launcher.yaml").read_text(encoding="utf-8")
    (save,) = re.findall(r"^#   kubectl (.*) > kfp-launcher.before.yaml$", page, re.MULTILINE)
    (clean,) = re.findall(r"^# clean: kubectl (.*) kfp-launcher.before.yaml$", page, re.MULTILINE)

    def data():
        return json.loads(installed.kubectl("-n", "kubeflow", "get", "configmap", "kfp-launcher", "-ojson"))["data"]

    installed.kubectl("-n", "kubeflow", "create", "configmap", "kfp-launcher", "--from-literal=defaultPipelineRoot=")
    try:
        (tmp_path / "before.yaml").write_text(installed.kubectl(*save.split()))
        installed.kubectl("apply", "-f-", stdin=text("components/pipeline-root"))
        assert data()["defaultPipelineRoot"] == "s3://arnas/kfp"
        installed.kubectl(*clean.split(), str(tmp_path / "before.yaml"))
        assert data() == {"defaultPipelineRoot": ""}
    finally:
        installed.kubectl("-n", "kubeflow", "delete", "configmap", "kfp-launcher")


def test_the_page_tells_argo_to_try_deleted_pods_again(installed):
    page = (MANIFESTS.parent / "docs" / "cluster.md").read_text(encoding="utf-8")
    (patch,) = re.findall(r"^kubectl (.* patch configmap .*\\\n.*)$", page, re.MULTILINE)
    (look,) = re.findall(r"^kubectl (.* get configmap workflow-controller-configmap .*) #", page, re.MULTILINE)
    installed.kubectl("-n", "kubeflow", "create", "configmap", "workflow-controller-configmap")
    try:
        assert installed.kubectl(*shlex.split(look)) == ""
        installed.kubectl(*shlex.split(patch.replace("\\\n", "")))
        told = yaml.safe_load(installed.kubectl(*shlex.split(look)))
        assert told["spec"]["templateDefaults"]["retryStrategy"] == {"limit": "0", "retryPolicy": "Always"}
    finally:
        installed.kubectl("-n", "kubeflow", "delete", "configmap", "workflow-controller-configmap")


def test_a_control_plane_refuses_what_is_no_manifest(installed):
    broken = text("overlays/laptop").replace("podSelector", "podselector")
    with pytest.raises(RuntimeError, match="podselector: field not declared in schema"):
        installed.kubectl("apply", "--server-side", "--dry-run=server", "-f-", stdin=broken)


def test_applying_again_changes_nothing(installed):
    """No pod is started anew: the generation of an object counts the changes of what it asks for."""

    def generations():
        answer = installed.kubectl("get", "statefulset,networkpolicy", "--all-namespaces", "-ojson")
        return {label(thing): thing["metadata"]["generation"] for thing in json.loads(answer)["items"]}

    try:
        installed.kubectl("apply", "-f-", stdin=text("overlays/laptop"))
        before = generations()
        installed.kubectl("apply", "-f-", stdin=text("overlays/laptop"))
        assert generations() == before == dict.fromkeys(before, 1)
        assert len(before) == 5
    finally:
        installed.kubectl("delete", "statefulset", "minio", "--namespace=arnas")


@pytest.mark.parametrize("folder", [*OVERLAYS, "components/trainer"])
def test_every_pod_of_the_manifests_is_admitted(admit, folder):
    specs = pod_specs(objects(folder))
    assert specs
    for spec, labels in specs:
        admit(_with_claims(spec), labels)


MIG = {
    "gpus": "2",
    "accelerator": "nvidia.com/mig-1g.10gb",
    "gpu_pool": {"pool": "gpu"},
    "gpu_tolerations": [{"key": "team", "value": "a"}],
    "cpu_pool": {"pool": "cpu"},
    "secret": "arnas-s3",
}


@pytest.mark.parametrize("arguments", [{}, {"gpus": "0"}, MIG], ids=["default", "no GPU", "MIG"])
@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.stem)
def test_every_pod_that_kfp_makes_of_our_pipelines_is_admitted(admit, file, arguments):
    found = pods(file, "arnas-runner", **arguments)
    assert len(found) >= 2
    for pod in found.values():
        admit(pod["spec"], pod["metadata"]["labels"])


def test_every_pipeline_that_is_generated_is_looked_at():
    known = set((MANIFESTS.parent / "pipelines").rglob("*.yaml")) - {placement.COMMITTED}
    assert set(PIPELINES) == known and len(known) > 5


SITE = """
preflight: true
private_ca: true
gpu_tasks:
  affinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms: [{matchExpressions: [{key: nvidia.com/gpu.memory, operator: Gt, values: ["40000"]}]}]
  queue: arnas
  priority: low
secret_environment: {HTTPS_PROXY: {secret: proxy, key: url}}
"""


@pytest.mark.parametrize("name", generate.PIPELINES)
def test_every_pod_of_a_sites_own_placement_is_admitted(admit, name, tmp_path):
    (tmp_path / "site.yaml").write_text(SITE)
    file = generate.compile_pipeline(name, tmp_path / "site" / "own.yaml", placement=tmp_path / "site.yaml")
    found = pods(file, "arnas-runner")
    assert "exec-preflight" in found
    for pod in found.values():
        spec, labels = pod["spec"], pod["metadata"]["labels"]
        computes = "nvidia.com/gpu" in _main(spec)["resources"]["limits"]
        assert ("affinity" in spec, labels.get("kueue.x-k8s.io/queue-name")) == (
            computes,
            "arnas" if computes else None,
        )
        told = [each["valueFrom"]["secretKeyRef"]["name"] for each in _main(spec)["env"] if "valueFrom" in each]
        assert "proxy" in told
        volumes = [each["secret"]["secretName"] for each in spec["volumes"] if "secret" in each]
        assert volumes == [name for name in dict.fromkeys(told) if name != "proxy"]  # where the store is, its CA is
        admit(spec, labels)


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.stem)
def test_what_a_run_chooses_reaches_the_pods(file):
    """So that what is admitted above is what was meant."""
    specs = [pod["spec"] for pod in pods(file, "arnas-runner", **MIG).values()]
    limits = [_main(spec)["resources"]["limits"].get("nvidia.com/mig-1g.10gb") for spec in specs]
    for spec, limit in zip(specs, limits, strict=True):
        assert spec["nodeSelector"] == {"pool": "gpu" if limit else "cpu"}
        compiled_in = {"key": "nvidia.com/gpu", "operator": "Exists"}
        assert spec.get("tolerations", []) == ([*MIG["gpu_tolerations"], compiled_in] if limit else [])
    assert {"2", None} == set(limits)
    secrets = [
        each["valueFrom"]["secretKeyRef"]["name"]
        for spec in specs
        for each in _main(spec)["env"]
        if "secretKeyRef" in each.get("valueFrom", {})
    ]
    assert set(secrets) == {"arnas-s3"}


BREAKS = {
    "runAsNonRoot != true": lambda spec: _main(spec)["securityContext"].pop("runAsNonRoot"),
    "runAsUser=0": lambda spec: _main(spec)["securityContext"].update(runAsUser=0),
    "allowPrivilegeEscalation != false": lambda spec: _main(spec)["securityContext"].pop("allowPrivilegeEscalation"),
    "unrestricted capabilities": lambda spec: _main(spec)["securityContext"].pop("capabilities"),
    "hostPath": lambda spec: spec["volumes"].append({"name": "node", "hostPath": {"path": "/"}}),
    "host namespaces": lambda spec: spec.update(hostNetwork=True),
}


@pytest.mark.parametrize("reason", BREAKS)
def test_a_pod_that_breaks_the_standard_is_refused(admit, reason):
    spec = copy.deepcopy(next(iter(pods(PIPELINES[0], "arnas-runner").values()))["spec"])
    admit(spec)
    BREAKS[reason](spec)
    with pytest.raises(client.ApiException) as refused:
        admit(spec)
    message = json.loads(refused.value.body)["message"]
    assert 'violates PodSecurity "restricted:latest"' in message and reason in message


def _main(spec):
    return next(container for container in spec["containers"] if container["name"] == "main")


def _with_claims(spec):
    """What a StatefulSet adds to its pods' volumes."""
    known = {volume["name"] for volume in spec.get("volumes", [])}
    mounted = {mount["name"] for container in spec["containers"] for mount in container.get("volumeMounts", [])}
    claims = [{"name": name, "persistentVolumeClaim": {"claimName": f"{name}-minio-0"}} for name in mounted - known]
    return spec | {"volumes": [*spec.get("volumes", []), *claims]}
