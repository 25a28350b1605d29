"""Why pods of a run wait or failed, told by a real API server; a few lines stand in for the node with its logs."""

import datetime
import http.server
import ssl
import threading

import kubernetes
import pytest
import trustme
from kfp_stand_in import Kfp

from cluster import pods
from pipelines import submit
from pipelines.__main__ import main

RUN = "5c1f4a0e-0000-4000-8000-000000000001"
LOGS = {"main": "one\narnas.errors.InvalidInput: gpus = 1 were promised, but this task sees none.\n"}


@pytest.fixture(scope="module")
def kubelet():
    """Port of a server that answers as a node does when it is asked for the log of a container."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            log = LOGS["main"].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(log)))
            self.end_headers()
            self.wfile.write(log)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.asked = asked
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def core(cluster, kubelet):
    configuration = kubernetes.client.Configuration()
    kubernetes.config.load_kube_config(str(cluster.kubeconfig), client_configuration=configuration)
    core = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(configuration))
    core.create_namespace({"metadata": {"name": "pods"}})
    core.create_namespaced_service_account("pods", {"metadata": {"name": "default"}})
    core.create_node({"metadata": {"name": "node"}})
    status = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}
    status["daemonEndpoints"] = {"kubeletEndpoint": {"Port": kubelet.server_port}}
    core.patch_node_status("node", {"status": status})
    yield core
    core.delete_node("node")


@pytest.fixture
def write(core):
    """Writes a pod of a run as KFP, Argo and a node leave it; they are gone after the test."""
    names = []

    def write(node, status, run=RUN):
        name = f"arnas-x7k2p-{len(names)}"
        metadata = {"name": name, "labels": {"pipeline/runid": run}}
        metadata["annotations"] = {"workflows.argoproj.io/node-name": f"arnas-x7k2p.root.{node}"}
        core.create_namespaced_pod(
            "pods",
            {"metadata": metadata, "spec": {"nodeName": "node", "containers": [{"name": "main", "image": "arnas:1"}]}},
        )
        core.patch_namespaced_pod_status(name, "pods", {"status": status})
        names.append(name)

    yield write
    for name in names:
        core.delete_namespaced_pod(name, "pods", grace_period_seconds=0)


def ended(status, reason="Error"):
    """A container that has ended."""
    state = {"terminated": {"exitCode": status, "reason": reason}}
    return {
        "containerStatuses": [
            {"name": "main", "image": "", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        ]
    }


def test_a_failed_task_is_told_of_with_its_exit_status_and_the_end_of_its_log(core, write, kubelet):
    write("retrain.executor", {"phase": "Failed", **ended(1)})
    write("search.executor", {"phase": "Succeeded", **ended(0, "Completed")})
    write("derive.executor", {"phase": "Failed", **ended(1)}, run="another")
    assert list(pods.failures(core, "pods", RUN)) == [
        "retrain failed in pod arnas-x7k2p-0: main ended with Error, exit status 1.",
        "    one",
        "    arnas.errors.InvalidInput: gpus = 1 were promised, but this task sees none.",
    ]
    assert kubelet.asked == [f"/containerLogs/pods/arnas-x7k2p-0/main?tailLines={pods.LINES}"]


def test_a_task_in_loops_is_named_with_its_iterations(core, write):
    inner = "for-loop-2.iteration-iterations(0:0).iteration-item.whitebox.executor(0)"
    write(f"for-loop-1.iteration-iterations(1:1).iteration-item.{inner}", {"phase": "Failed", **ended(1)})
    assert next(pods.failures(core, "pods", RUN)).startswith("whitebox (iteration 1.0) failed in pod ")


def test_lack_of_memory_and_eviction_are_named(core, write):
    write("whitebox.executor", {"phase": "Failed", **ended(137, "OOMKilled")})
    write(
        "report.executor", {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
    )
    told = [line for line in pods.failures(core, "pods", RUN) if not line.startswith(" ")]
    assert told == [
        "whitebox failed in pod arnas-x7k2p-0: main ended with OOMKilled, exit status 137.",
        "report failed in pod arnas-x7k2p-1: Evicted: The node was low on resource: memory.",
    ]


def test_of_a_task_that_was_tried_again_only_the_last_try_counts(core, write):
    for attempt in range(2):
        write(f"retrain.executor({attempt})", {"phase": "Failed", **ended(attempt + 1)})
    write("search.executor(0)", {"phase": "Failed", **ended(1)})
    write("search.executor(1)", {"phase": "Succeeded", **ended(0)})
    told = [line for line in pods.failures(core, "pods", RUN) if not line.startswith(" ")]
    assert told == ["retrain failed in pod arnas-x7k2p-1: main ended with Error, exit status 2."]


def test_a_failed_driver_of_a_loop_is_told_of_whatever_became_of_others(core, write):
    loop = "for-loop-1.iteration-iterations(0:0).iteration-item"
    write(f"{loop}.retrain-driver", {"phase": "Failed", **ended(1)})
    write(f"{loop}.whitebox-driver", {"phase": "Succeeded", **ended(0)})
    told = [line for line in pods.failures(core, "pods", RUN) if not line.startswith(" ")]
    assert len(told) == 1 and told[0].startswith("retrain-driver (iteration 0) failed in pod arnas-x7k2p-0")


def test_a_log_that_is_gone_does_not_hide_the_reason(core, write):
    write("prepare.executor", {"phase": "Failed", **ended(1)})
    port = core.read_node("node").status.daemon_endpoints.kubelet_endpoint.port
    core.patch_node_status("node", {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 9}}}})
    first, second = pods.failures(core, "pods", RUN)
    core.patch_node_status("node", {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}})
    assert first == "prepare failed in pod arnas-x7k2p-0: main ended with Error, exit status 1."
    assert second.startswith("    (its log is gone: ")


def test_what_keeps_a_task_from_starting_is_named(core, write):
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    write("search.executor", {"phase": "Pending", "conditions": [scheduled]})
    pull = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "arnas:1"'}}
    statuses = [{"name": "main", "image": "", "imageID": "", "ready": False, "restartCount": 0, "state": pull}]
    write("prepare.executor(0)", {"phase": "Pending", "containerStatuses": statuses})
    quiet = [statuses[0] | {"state": {"waiting": {"reason": "PodInitializing"}}}]
    write("derive.executor", {"phase": "Pending", "containerStatuses": quiet})
    write("report.executor", {"phase": "Running"})
    assert pods.waiting(core, "pods", RUN) == {
        "search": f"Unschedulable: {message}",
        "prepare": 'ImagePullBackOff: Back-off pulling image "arnas:1"',
    }


def test_a_pod_that_starts_for_long_is_told_of_with_the_volume_that_it_lacks(core, write, monkeypatch):
    state = {"waiting": {"reason": "ContainerCreating"}}
    statuses = [{"name": "main", "image": "", "imageID": "", "ready": False, "restartCount": 0, "state": state}]
    write("search.executor(0)", {"phase": "Pending", "containerStatuses": statuses})
    write("derive.executor(0)", {"phase": "Pending", "containerStatuses": statuses})
    message = 'MountVolume.SetUp failed for volume "arnas-s3" : secret "arnas-s3" not found'
    event = {"metadata": {"generateName": "arnas-"}, "reason": "FailedMount", "message": message, "type": "Warning"}
    core.create_namespaced_event(
        "pods", event | {"involvedObject": {"kind": "Pod", "name": "arnas-x7k2p-0", "namespace": "pods"}}
    )
    assert pods.waiting(core, "pods", RUN) == {}
    monkeypatch.setattr(pods, "SLOW", datetime.timedelta(0))
    assert pods.waiting(core, "pods", RUN) == {"search": f"FailedMount: {message}"}


def test_a_follower_is_told_why_a_task_waits_and_in_the_end_why_another_failed(
    cluster, core, write, monkeypatch, capsys
):
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    monkeypatch.setattr(submit, "POLL", 0.01)
    states = [("RUNNING", {"retrain": "RUNNING"})] * 3 + [("FAILED", {"retrain": "FAILED"})]
    with Kfp(states) as kfp:
        assert main(["submit", "--preset", "digits", "--endpoint", kfp.url]) == 0
        run = kfp.runs[0]["run_id"]
        write("retrain.executor(0)", {"phase": "Failed", **ended(1)}, run)
        message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
        scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        write("search.executor(0)", {"phase": "Pending", "conditions": [scheduled]}, run)
        capsys.readouterr()
        assert main(["submit", "--endpoint", kfp.url, "--namespace", "pods", "--follow", run]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "retrain ...",
        f"search waits: Unschedulable: {message}",
        "retrain failed after 1:12",
    ]
    assert captured.err.splitlines()[:2] == [
        "The run failed.",
        "retrain failed in pod arnas-x7k2p-0: main ended with Error, exit status 1.",
    ]
    assert (
        captured.err.splitlines()[-1]
        == "    arnas.errors.InvalidInput: gpus = 1 were promised, but this task sees none."
    )
