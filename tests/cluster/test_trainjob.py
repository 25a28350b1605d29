"""TrainJobs against a real API server with Kubeflow Trainer's definitions; what its controller does is done here."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from kubernetes import client, config
from manifests.conftest import define
from manifests.rendered import objects as rendered
from safetensors.torch import load_file

from arnas import objects
from arnas.checkpoints import CheckpointStore
from arnas.config import load
from arnas.errors import Interrupted, InvalidInput
from arnas.space import genotype as genotypes
from arnas.stages import retrain
from cluster import trainjob
from cluster.trainjob import Trainer, TrainJobFailed

__all__ = ["define"]  # a fixture

COMMAND = ["python3", "-m", "arnas.cli", "retrain", "s3://a/images", "s3://a/model"]
OVERRIDES = {"retrain": {"epochs": 2, "batch_size": 25.0, "layout": "D1 R1", "channels": 2}, "retrain.cutout": 2}
OVERRIDES |= {"retrain.attack_steps": 1, "retrain.selection_steps": 1, "retrain.learning_rate": 1e-05}


@pytest.fixture
def namespace(cluster, define, tmp_path):
    """A fresh namespace with the runtime of our manifests, in a cluster that has Trainer's definitions."""
    define("components/trainer")
    name = f"trainjob-{os.urandom(4).hex()}"
    cluster.kubectl("create", "namespace", name)
    (runtime,) = (thing for thing in rendered("components/trainer") if thing["kind"] == "TrainingRuntime")
    runtime["metadata"]["namespace"] = name
    cluster.kubectl("apply", "--server-side", "-f-", stdin=yaml.safe_dump(runtime))
    return name


@pytest.fixture
def trainer(cluster, namespace, monkeypatch):
    monkeypatch.setattr(trainjob, "PAUSE", 0.2)
    trainer = Trainer(config.new_client_from_config(str(cluster.kubeconfig)), namespace)
    ended = threading.Event()
    collector = threading.Thread(target=collect_garbage, args=(trainer, ended))
    collector.start()
    yield trainer
    ended.set()
    collector.join()


def collect_garbage(trainer, ended):
    """What Kubernetes' garbage collector does with a job whose nodes are gone."""
    api = client.CustomObjectsApi(trainer.api)
    place = (trainjob.GROUP, trainjob.VERSION, trainer.namespace, trainjob.PLURAL)
    while not ended.wait(0.3):
        for job in api.list_namespaced_custom_object(*place)["items"]:
            if "deletionTimestamp" in job["metadata"]:
                api.patch_namespaced_custom_object(*place, job["metadata"]["name"], {"metadata": {"finalizers": None}})


def require_gone(trainer, name):
    deadline = time.monotonic() + 20
    while trainer._state(name) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wanted(name="job", nodes=2, gpus=4):
    return trainjob.job(name, COMMAND, nodes, gpus, "nvidia.com/gpu", "arnas", "registry.example.org/arnas:1")


def set_condition(trainer, name, kind, message):
    """What Trainer's controller writes when a job ends."""
    now = "2026-01-01T00:00:00Z"
    condition = {"type": kind, "status": "True", "reason": kind, "message": message, "lastTransitionTime": now}
    client.CustomObjectsApi(trainer.api).patch_namespaced_custom_object_status(
        trainjob.GROUP,
        trainjob.VERSION,
        trainer.namespace,
        trainjob.PLURAL,
        name,
        {"status": {"conditions": [condition]}},
    )


def add_pod(trainer, name, index, state, phase):
    """A pod as the controllers make it for a node, in a state."""
    core = client.CoreV1Api(trainer.api)
    pod = f"{name}-node-0-{index}-abcde"
    core.create_namespaced_service_account(trainer.namespace, {"metadata": {"name": f"account-{index}"}})
    spec = {"serviceAccountName": f"account-{index}", "containers": [{"name": "node", "image": "arnas:1"}]}
    labels = {"jobset.sigs.k8s.io/jobset-name": name}
    core.create_namespaced_pod(trainer.namespace, {"metadata": {"name": pod, "labels": labels}, "spec": spec})
    status = {"name": "node", "image": "arnas:1", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    core.patch_namespaced_pod_status(
        pod, trainer.namespace, {"status": {"phase": phase, "containerStatuses": [status]}}
    )
    return pod


@contextmanager
def meanwhile(act):
    """Do something in a thread while the block runs; its mistakes are the test's."""
    mistakes = []

    def work():
        try:
            act()
        except BaseException as error:
            mistakes.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert not mistakes


def when_made(trainer, name):
    while (state := trainer._state(name)) is None:
        time.sleep(0.1)
    return state


def test_the_api_server_takes_the_job_and_a_second_task_joins_it(trainer, capsys):
    def complete():
        made = when_made(trainer, "job")
        assert made["spec"]["trainer"]["command"] == COMMAND
        assert made["spec"]["trainer"]["resourcesPerNode"] == {"limits": {"nvidia.com/gpu": "4"}}
        assert made["spec"]["runtimeRef"]["kind"] == "TrainingRuntime"
        set_condition(trainer, "job", "Complete", "done")

    with meanwhile(complete):
        trainer.run(wanted())
    trainer.run(wanted())
    assert "this task joins it" in capsys.readouterr().err
    trainer.remove("job")
    require_gone(trainer, "job")


def test_a_failed_job_is_told_with_the_log_of_the_node_that_failed_first_and_begun_anew(trainer, monkeypatch, capsys):
    def log(core, pod, namespace, **more):
        return f"line 1 of {pod}\nretrain net: the loss became nan\n"

    monkeypatch.setattr(client.CoreV1Api, "read_namespaced_pod_log", log)  # there is no kubelet to ask

    def fail():
        when_made(trainer, "job")
        for index, second in ((0, "09"), (1, "05")):
            end = {"exitCode": 3, "reason": "Error", "finishedAt": f"2026-01-01T00:00:{second}Z"}
            add_pod(trainer, "job", index, {"terminated": end}, "Failed")
        set_condition(trainer, "job", "Failed", "jobset failed.")

    with meanwhile(fail), pytest.raises(TrainJobFailed) as caught:
        trainer.run(wanted())
    assert str(caught.value).splitlines() == [
        "TrainJob job failed (jobset failed) in pod job-node-0-1-abcde: node ended with Error, exit status 3.",
        "    line 1 of job-node-0-1-abcde",
        "    retrain net: the loss became nan",
    ]
    before = trainer._state("job")["metadata"]["uid"]

    def complete():
        while (state := trainer._state("job")) is None or state["metadata"]["uid"] == before:
            time.sleep(0.1)
        set_condition(trainer, "job", "Complete", "done")

    with meanwhile(complete):
        trainer.run(wanted())
    assert "had failed; it is begun anew" in capsys.readouterr().err


def test_what_keeps_a_node_from_starting_is_told(trainer, capsys):
    def wait():
        when_made(trainer, "job")
        add_pod(trainer, "job", 0, {"running": {}}, "Running")
        state = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        add_pod(trainer, "job", 1, state, "Pending")
        time.sleep(1)
        set_condition(trainer, "job", "Complete", "done")

    with meanwhile(wait):
        trainer.run(wanted())
    assert "1 of 2 nodes run, one waits (ImagePullBackOff: no such image)." in capsys.readouterr().err


def test_a_task_that_is_stopped_deletes_the_job(trainer):
    def stop():
        when_made(trainer, "job")
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(stop), pytest.raises(Interrupted) as caught:
        trainer.run(wanted())
    assert caught.value.code == 143
    require_gone(trainer, "job")


def test_a_job_that_somebody_deletes_is_no_success(trainer):
    def delete():
        when_made(trainer, "job")
        trainer.remove("job")

    with meanwhile(delete), pytest.raises(TrainJobFailed, match="was deleted while it ran"):
        trainer.run(wanted())


def test_a_field_that_trainer_does_not_know_is_refused(trainer):
    job = wanted()
    job["spec"]["trainer"]["nodes"] = 2
    with pytest.raises(InvalidInput, match=r'unknown field "spec.trainer.nodes"'):
        trainer.run(job)


def test_a_cluster_without_trainer_is_told_in_one_sentence(trainer, monkeypatch):
    monkeypatch.setattr(trainjob, "GROUP", "trainer.example.org")
    with pytest.raises(InvalidInput, match=r"knows no TrainJob .* install Kubeflow Trainer 2"):
        trainer.run(wanted())


def test_an_account_without_rights_is_told_what_it_lacks(cluster, namespace):
    cluster.kubectl("create", "serviceaccount", "nobody", f"--namespace={namespace}")
    api = config.new_client_from_config(str(cluster.kubeconfig_of("nobody", namespace)))
    with pytest.raises(InvalidInput, match=r'resource "trainjobs".*manifests/components/trainer holds the rights'):
        Trainer(api, namespace).run(wanted())


def test_the_rights_of_our_manifests_are_enough(cluster, namespace, monkeypatch):
    monkeypatch.setattr(trainjob, "PAUSE", 0.2)
    cluster.kubectl("create", "serviceaccount", "arnas-runner", f"--namespace={namespace}")
    for thing in rendered("components/trainer"):
        if thing["kind"] in ("Role", "RoleBinding"):
            thing["metadata"]["namespace"] = namespace
            for subject in thing.get("subjects", []):
                subject["namespace"] = namespace
            cluster.kubectl("apply", "-f-", stdin=yaml.safe_dump(thing))
    trainer = Trainer(config.new_client_from_config(str(cluster.kubeconfig_of("arnas-runner", namespace))), namespace)
    master = Trainer(config.new_client_from_config(str(cluster.kubeconfig)), namespace)

    def complete():
        when_made(master, "job")
        set_condition(master, "job", "Complete", "done")

    with meanwhile(complete):
        trainer.run(wanted())
    trainer.remove("job")


@contextmanager
def nodes_that_run(trainer, folder):
    """What Trainer, JobSet and kubelets do with a TrainJob: its command on every node, with torchrun's variables."""

    def work():
        name = None
        while name is None:
            name = next((each["metadata"]["name"] for each in _all(trainer)), None)
            time.sleep(0.1)
        spec = trainer._state(name)["spec"]["trainer"]
        port = _free_port()
        processes = []
        for rank in range(spec["numNodes"]):
            node = folder / f"node-{rank}"
            node.mkdir()
            environment = os.environ | {variable["name"]: variable["value"] for variable in spec.get("env", [])}
            environment |= {"PET_NNODES": str(spec["numNodes"]), "PET_NODE_RANK": str(rank), "TMPDIR": str(node)}
            environment |= {"PET_NPROC_PER_NODE": str(spec["numProcPerNode"])}
            environment |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
            environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
            command = [sys.executable, *spec["command"][1:]]
            with (folder / f"node-{rank}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        codes = [process.wait() for process in processes]
        set_condition(trainer, name, "Failed" if any(codes) else "Complete", f"exit statuses {codes}")

    with meanwhile(work):
        yield


def _all(trainer):
    api = client.CustomObjectsApi(trainer.api)
    return api.list_namespaced_custom_object(trainjob.GROUP, trainjob.VERSION, trainer.namespace, trainjob.PLURAL)[
        "items"
    ]


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_two_nodes_train_what_one_process_trains_and_leave_nothing_behind(
    trainer, noise, bucket, tmp_path, monkeypatch
):
    """The job's own command line, in two nodes of two processes, with a real store between them and the task."""
    monkeypatch.setattr(Trainer, "here", lambda: trainer)
    genotype = Path(genotypes.__file__).parent / "genotypes" / "arnas-cifar10.json"
    told = {"name": "searched", "preset": "smoke", "overrides": OVERRIDES, "genotype": genotype}
    with nodes_that_run(trainer, tmp_path):
        returned = trainjob.retrain(
            noise, tmp_path / "model", checkpoints=bucket, nodes=2, gpus=0, accelerator="nvidia.com/gpu",
            runtime="arnas", **told,
        )  # fmt: skip
    logs = [(tmp_path / f"node-{rank}.log").read_text() for rank in range(2)]
    assert "[retrain searched]" in logs[0] and returned["digest"] in logs[0]
    assert "[retrain" not in logs[1] and returned["digest"] not in logs[1]  # only the first process is heard
    settings = load("smoke", OVERRIDES).recipe("searched")
    alone = retrain.run(
        noise,
        tmp_path / "alone",
        settings,
        name="searched",
        genotype=genotype,
        checkpoints=tmp_path / "c",
        device="cpu",
    )
    assert {**returned, "digest": ""} == pytest.approx({**alone, "digest": ""})
    for which in ("best", "last"):
        one, two = (load_file(tmp_path / folder / f"{which}.safetensors") for folder in ("alone", "model"))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    left = {name.split("/")[0] for name in objects.Bucket(bucket).list()}
    assert len(left) == 1 and CheckpointStore(bucket).load(left.pop()), "nothing but the checkpoint"
    assert all("deletionTimestamp" in job["metadata"] for job in _all(trainer))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"checkpoints": "/somewhere"}, "which several nodes do not share"),
        ({"preset": "mine.yaml"}, "is not in the image of the nodes"),
        ({"nodes": 0}, "nodes = 0"),
        ({"name": "other"}, "models has no 'other'"),
    ],
)
def test_what_nodes_cannot_use_is_refused_before_anything_starts(noise, tmp_path, change, sentence):
    told = {"name": "searched", "preset": "smoke", "overrides": {}, "checkpoints": "s3://some/place", "nodes": 2}
    told |= {"gpus": 1, "accelerator": "nvidia.com/gpu", "runtime": "arnas"}
    with pytest.raises(InvalidInput, match=sentence):
        trainjob.retrain(noise, tmp_path / "model", **(told | change))
