"""A compiled pipeline on a real Kubernetes and a real Argo: tasks find their inputs, lost pods' work goes on."""

import json
import os
import re
import secrets
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines import generate
from rehearsal import argo, compiler
from rehearsal.driver import Driver
from rehearsal.node import ARGO, Node

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # seconds; a run takes one or two minutes where two cores are free

pytestmark = pytest.mark.timeout(2 * PATIENCE)
QUICK = {"transfer.dataset": "digits", "retrain.epochs": 15, "whitebox.autoattack_images": 0}
VARIANTS = [{"name": "digits", "prepare.dataset": "digits"}]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Folder of the pipelines, compiled for a site that does not wait long between two attempts."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "site.yaml").write_text("retries: {wait: 1, factor: 1}")
    generate.compile_all(folder, placement=folder / "site.yaml")
    return folder / "pipelines"


@pytest.fixture(scope="module")
def transfer(pipelines):
    return pipelines / "studies" / "transfer.yaml"


@pytest.fixture(scope="module")
def controller():
    try:
        return argo.binary()
    except FileNotFoundError as absent:
        pytest.skip(str(absent))


class Run:
    """A run of a pipeline, until it ends."""

    def __init__(self, node, workflow):
        self.node = node
        made = node.custom.create_namespaced_custom_object(*ARGO, node.namespace, "workflows", workflow)
        self.name = made["metadata"]["name"]

    def state(self):
        found = self.node.custom.get_namespaced_custom_object(*ARGO, self.node.namespace, "workflows", self.name)
        return found.get("status", {})

    def running(self, task):
        """Name of the pod that runs a task's program, once Argo knows that it does."""

        def found():
            for pod, process in list(self.node.processes.items()):
                if self.name in pod and f"--function_to_execute {task}" in " ".join(process.args):
                    return pod

        pod = self.until(found)
        self.until(lambda: ("Running", "") in self.attempts(task))
        return pod

    def end(self):
        """The phase that the run ends in."""
        ends = ("Succeeded", "Failed", "Error")
        return self.until(lambda: next((end for end in ends if self.state().get("phase") == end), None))

    def why(self):
        """What the last programs said."""
        return "\n\n".join(log.read_text(errors="replace")[-800:] for log in sorted(self.node.folder.glob("*.log")))

    def attempts(self, task):
        """(phase, message) of each pod of a task."""
        pods = [each for each in self.state()["nodes"].values() if each["type"] == "Pod"]
        mine = [each for each in pods if re.search(rf"\.{task}(\(0\))?\.executor\(\d+\)$", each["name"])]
        return [(each["phase"], each.get("message", "")) for each in sorted(mine, key=lambda each: each["name"])]

    def until(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert not self.node.failures
            assert time.monotonic() < deadline, json.dumps(self.state(), indent=1)[-3000:]
            time.sleep(0.1)
        return found


@pytest.fixture
def site(cluster, controller, minio, tmp_path):
    """Opens a namespace with Argo, the store's secret and a node: a context of the node."""

    @contextmanager
    def open_(name, **config):
        for folder in ("pods", "artifacts"):
            (tmp_path / folder).mkdir()
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        secret = {"accesskey": minio.access_key, "secretkey": minio.secret_key}
        metadata = {"name": "mlpipeline-minio-artifact", "namespace": name}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": secret}
        driver = Driver(tmp_path / "artifacts")
        with argo.running(cluster, name, tmp_path, **config):
            cluster.kubectl("create", "-f-", stdin=json.dumps(body))
            with Node(cluster, name, driver, tmp_path / "pods", environment) as node:
                yield node

    return open_


def arguments(minio, bucket, **more):
    overrides = QUICK | ({"retrain.architecture": "arnas-cifar10"} if "variants" in more else {})
    computing = {"preset": "smoke", "overrides": overrides, "gpus": "0", "device": "cpu"}
    return {"endpoint": minio.url, "checkpoints": bucket} | computing | more


def start(node, file, given):
    return Run(node, compiler.workflow(file, given, "pipeline-runner"))


def test_the_whole_pipeline_runs_to_its_report(site, pipelines, minio, bucket):
    with site("whole") as node:
        given = arguments(minio, bucket, models=["searched", "resnet18"], shards=["1/2", "2/2"])
        run = start(node, pipelines / "arnas.yaml", given)
        assert run.end() == "Succeeded", run.why()
        (html,) = (each.outputs["html"] for each in node.driver.executions.values() if "html" in each.outputs)
        assert "resnet18" in Path(html["uri"]).read_text()
        assert len(run.attempts("whitebox")) == 4 and len(run.attempts("merge")) == 2
        made = node.custom.get_namespaced_custom_object(*ARGO, node.namespace, "workflows", run.name)
        said = [json.dumps(made), *(log.read_text(errors="replace") for log in node.folder.glob("*.log"))]
        assert len(said) > 10 and not [text for text in said if minio.secret_key in text]


def test_an_evicted_and_a_killed_task_go_on_from_their_checkpoints_and_end_with_the_same_network(
    site, transfer, minio, bucket
):
    with site("preempted") as node:
        lost = start(node, transfer, arguments(minio, f"{bucket}/lost", variants=VARIANTS))
        first = lost.running("retrain")
        saved = lost.until(lambda: written(minio, f"{bucket}/lost"))
        node.evict(first)
        second = lost.running("retrain")
        lost.until(lambda: written(minio, f"{bucket}/lost") - saved)
        node.kill(second)
        assert lost.end() == "Succeeded", lost.why()
        phases = [phase for phase, _ in lost.attempts("retrain")]
        assert phases == ["Failed", "Failed", "Succeeded"]
        assert lost.attempts("retrain")[0][1] == "The node was low on resource: memory."
        assert re.search(r"goes on after \d+ of \d+ steps", node.log(second))

        kept = start(node, transfer, arguments(minio, f"{bucket}/kept", variants=VARIANTS))
        assert kept.end() == "Succeeded", kept.why()
        networks = [each.outputs["network"] for each in node.driver.executions.values() if "network" in each.outputs]
        assert len(networks) == 2
        assert networks[0]["metadata"]["digest"] == networks[1]["metadata"]["digest"]


def test_a_deleted_pod_ends_the_run_unless_argo_is_told_to_try_again(site, transfer, minio, bucket):
    with site("stock") as node:
        run = start(node, transfer, arguments(minio, bucket, variants=VARIANTS))
        node.delete(run.running("prepare"))
        assert run.end() == "Error"
        assert run.attempts("prepare") == [("Error", "pod deleted")]


def test_argo_with_our_defaults_tries_a_deleted_pod_again(site, transfer, minio, bucket):
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("troubleshooting.md", "cluster.md")]
    command = re.compile(r"patch configmap workflow-controller-configmap --type merge -p \\\n +'(.+)'")
    patch, same = (found for page in pages for found in command.findall(page))
    assert patch == same
    with site("patched", **json.loads(patch)["data"]) as node:
        run = start(node, transfer, arguments(minio, bucket, variants=VARIANTS))
        node.delete(run.running("prepare"))
        assert run.end() == "Succeeded", run.why()
        assert [phase for phase, _ in run.attempts("prepare")] == ["Error", "Succeeded"]


@pytest.mark.parametrize("text", ["{spec: [", "a word", "{spec: {templateDefaults: word}}", "spec: {}"])
def test_argo_ends_where_preflight_says_so(text, cluster, controller, tmp_path):
    name = f"damaged-{secrets.token_hex(4)}"
    with pytest.raises(RuntimeError, match="fatal"), argo.running(cluster, name, tmp_path, workflowDefaults=text):
        pass


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"gpus": 1}, "gpus requires type STRING"),
        ({"genotyp": "x"}, "not required by pipeline"),
        ({"overrides": "{}"}, "overrides requires type STRUCT"),
    ],
)
def test_what_kfp_refuses_is_refused(transfer, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        compiler.workflow(transfer, {"variants": VARIANTS} | wrong, "pipeline-runner")


def written(minio, place):
    """The objects of a place, each with the time of its last change."""
    name, prefix = place.removeprefix("s3://").split("/", 1)
    found = minio.client().list_objects(name, prefix, recursive=True)
    return {(each.object_name, each.last_modified) for each in found}
