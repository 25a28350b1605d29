"""What the manifests say, before any cluster is asked."""

import re

import kubernetes_validate
import pytest
import yaml
from manifests.rendered import COMPONENTS, MANIFESTS, OVERLAYS, environment, label, objects, pod_specs, text

from cluster import credentials
from components import IMAGE

PARTS = ("base", "base/store", "base/runs", "image")  # of overlays
CUSTOM = {"kueue.x-k8s.io", "trainer.kubeflow.org"}  # groups that Kubernetes itself does not have


@pytest.fixture(scope="module", params=OVERLAYS + COMPONENTS)
def rendered(request):
    return objects(request.param)


def test_every_folder_that_can_be_applied_is_tested():
    applied = {str(file.parent.relative_to(MANIFESTS)) for file in MANIFESTS.rglob("kustomization.yaml")}
    assert applied == {*OVERLAYS, *COMPONENTS, *PARTS}


@pytest.mark.parametrize("version", ["1.32", kubernetes_validate.latest_version()])
def test_each_object_is_what_kubernetes_takes(rendered, version):
    for thing in rendered:
        if thing["apiVersion"].split("/")[0] not in CUSTOM:
            kubernetes_validate.validate(thing, version, strict=True)


def test_the_schemas_refuse_what_kubernetes_would():
    minio = next(thing for thing in objects("overlays/laptop") if label(thing) == "StatefulSet/minio")
    minio["spec"]["template"]["spec"]["containers"][0]["image_pull_policy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="image_pull_policy"):
        kubernetes_validate.validate(minio, "1.32", strict=True)


def test_every_file_opens_with_how_to_apply_check_and_clean():
    lists = [MANIFESTS / part / "kustomization.yaml" for part in (*PARTS, *COMPONENTS)]  # of files that say it
    files = [file for file in MANIFESTS.rglob("*.yaml") if file not in lists]
    assert len(files) > 10
    for file in files:
        words = [line.partition(":")[0] for line in file.read_text().splitlines()[:3]]
        assert words == ["# apply", "# check", "# clean"], file
        folders = re.findall(r"-k (manifests/[\w/-]+)", file.read_text())
        assert folders, file
        assert all((MANIFESTS.parent / folder / "kustomization.yaml").is_file() for folder in folders), file


def test_images_are_ours_and_others_of_a_fixed_version(rendered):
    images = {container["image"] for spec, _ in pod_specs(rendered) for container in spec["containers"]}
    assert images <= {IMAGE, "minio/minio:RELEASE.2025-09-07T16-13-09Z"}


def test_no_secret_stands_in_a_manifest(rendered):
    assert not [label(thing) for thing in rendered if thing["kind"] == "Secret"]
    for each in environment(rendered):
        secret = re.search("KEY|SECRET|PASSWORD|TOKEN|USER", each["name"])
        assert bool(secret) == ("secretKeyRef" in each.get("valueFrom", {})), each["name"]


def test_nothing_that_looks_like_a_key_stands_in_any_file():
    def keys(text):
        return [word for word in re.findall(r"\b[A-Za-z0-9+/]{16,}=*", text) if re.search(r"\d.*\d.*\d", word)]

    assert keys("value: c0ffee0123456789") and keys("accesskey: TWluSU8xMjM0NTY3ODk=")
    assert [(file, found) for file in MANIFESTS.rglob("*.yaml") if (found := keys(file.read_text()))] == []


def test_the_parts_agree_on_the_store():
    """Its address, its bucket, and the name of its keys are written down in several places."""
    found = {label(thing): thing for folder in [OVERLAYS[0], *COMPONENTS] for thing in objects(folder)}
    service, launcher = found["Service/minio"], found["ConfigMap/kfp-launcher"]["data"]
    address = f"{service['metadata']['name']}.{service['metadata']['namespace']}:{service['spec']['ports'][0]['port']}"
    (store,) = yaml.safe_load(launcher["providers"]).values()
    assert store["default"]["endpoint"] == address
    assert store["default"]["credentials"]["secretRef"] == {
        "secretName": credentials.SECRET,
        "accessKeyKey": "accesskey",
        "secretKeyKey": "secretkey",
    }
    job = found["Job/arnas-bucket"]["spec"]["template"]["spec"]["containers"][0]
    assert launcher["defaultPipelineRoot"].startswith(f"{job['args'][0]}/")
    told = environment(list(found.values()))
    assert {each["value"] for each in told if each["name"] == "AWS_ENDPOINT_URL"} == {f"http://{address}"}
    references = [each["valueFrom"]["secretKeyRef"] for each in told if "valueFrom" in each]
    assert {(each["name"], each["key"]) for each in references} == {
        (credentials.SECRET, "accesskey"),
        (credentials.SECRET, "secretkey"),
    }


def admitted(policy, port, namespace, labels):
    """Whether a NetworkPolicy lets a pod of a namespace in, at a port, as Kubernetes documents it."""

    def matches(selector, labels):
        assert selector.keys() <= {"matchLabels"}
        return selector.get("matchLabels", {}).items() <= labels.items()

    named = {"kubernetes.io/metadata.name": namespace}
    return any(
        matches(peer["namespaceSelector"], named) and matches(peer.get("podSelector", {}), labels)
        for rule in policy["spec"]["ingress"]
        if port in [each["port"] for each in rule["ports"]]
        for peer in rule["from"]
    )


@pytest.mark.parametrize(
    ("namespace", "labels", "may"),
    [
        ("kubeflow", {"pipeline/runid": "of somebody else"}, True),  # their artifacts go to our store, too
        ("kubeflow", {"app": "ml-pipeline-ui"}, True),
        ("arnas", {"app.kubernetes.io/part-of": "arnas"}, True),
        ("other", {"app.kubernetes.io/part-of": "arnas"}, True),
        ("other", {"pipeline/runid": "of somebody else"}, False),
        ("arnas", {}, False),
    ],
)
@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_store_admits_all_runs_our_pods_and_kfps_pages(folder, namespace, labels, may):
    (policy,) = [thing for thing in objects(folder) if label(thing) == "NetworkPolicy/minio"]
    assert admitted(policy, "s3", namespace, labels) == may
    assert not admitted(policy, "console", namespace, labels)


def test_a_node_of_a_trainjob_that_fails_is_not_tried_again_in_place():
    """A mistake would be repeated, and its pods removed with what they said; the task's retry goes on instead."""
    (runtime,) = (thing for thing in objects("components/trainer") if thing["kind"] == "TrainingRuntime")
    jobset = runtime["spec"]["template"]["spec"]
    (node,) = jobset["replicatedJobs"]
    job = node["template"]["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert (job["backoffLimit"], jobset.get("failurePolicy")) == (0, None)


def test_the_nodes_of_a_trainjob_reach_gpu_pools_and_a_private_registry():
    (runtime,) = (thing for thing in objects("components/trainer") if thing["kind"] == "TrainingRuntime")
    ((node, _),) = pod_specs([runtime])
    assert {"key": "nvidia.com/gpu", "operator": "Exists"} in node["tolerations"]
    assert node["imagePullSecrets"] == [{"name": "arnas-registry"}]
    assert environment([runtime]) == []  # store and keys are the task's to say


RUNS = ("base/runs", "components/preflight", "components/trainer")  # what has to do with a namespace of runs


def test_an_overlay_moves_the_runs_to_another_namespace(tmp_path):
    """Rights go to the account where it is, the keys are made there, and the store stays where it was."""
    manifests = tmp_path / "manifests"
    for file in MANIFESTS.rglob("*.yaml"):
        copy = manifests / file.relative_to(MANIFESTS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    runs = {"namespace": "team-a", "resources": [f"../../{part}" for part in RUNS]}
    own = {"resources": ["../../base/store", "../runs"], "components": ["../../base"]}
    for name, content in {"runs": runs, "own": own}.items():
        (manifests / "overlays" / name).mkdir()
        (manifests / "overlays" / name / "kustomization.yaml").write_text(yaml.safe_dump(content))
    found = list(yaml.safe_load_all(text(manifests / "overlays/own")))
    assert {thing["metadata"].get("namespace") for thing in found} == {None, "arnas", "team-a"}
    accounts = {(each["name"], each["namespace"]) for thing in found for each in thing.get("subjects", [])}
    assert accounts == {("arnas-runner", "team-a"), ("arnas-secret", "arnas")}
    job = next(thing for thing in found if label(thing) == "Job/arnas-secret")
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["arnas", "team-a"]
    policy = next(thing for thing in found if label(thing) == "NetworkPolicy/minio")
    assert admitted(policy, "s3", "team-a", {}) and not admitted(policy, "s3", "kubeflow", {})
    assert "RUNS" not in yaml.safe_dump_all(found)
