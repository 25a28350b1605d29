"""TrainJobs against a real API server with Kubeflow Trainer's definitions; what its controller does is done here."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch
import yaml
from kubernetes import client, config
from manifests.conftest import define
from manifests.rendered import objects as rendered
from safetensors.torch import load_file
from urllib3.exceptions import NewConnectionError

from arnas import artifacts, objects
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
    runtime = ours()
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
    """What Kubernetes' garbage collector does with a job whose nodes are gone; those of a held one are not yet."""
    api = client.CustomObjectsApi(trainer.api)
    place = (trainjob.GROUP, trainjob.VERSION, trainer.namespace, trainjob.PLURAL)
    while not ended.wait(0.3):
        for job in api.list_namespaced_custom_object(*place)["items"]:
            if "deletionTimestamp" in job["metadata"] and "held" not in job["metadata"].get("annotations", {}):
                api.patch_namespaced_custom_object(*place, job["metadata"]["name"], {"metadata": {"finalizers": None}})


def require_gone(trainer, name):
    deadline = time.monotonic() + 20
    while trainer._state(name) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ours():
    """The runtime of our manifests."""
    (runtime,) = (thing for thing in rendered("components/trainer") if thing["kind"] == "TrainingRuntime")
    return runtime


def wanted(name="job", nodes=2, gpus=4, pod=None, runtime=None):
    secret = "mlpipeline-minio-artifact"
    return trainjob.job(name, COMMAND, nodes, gpus, "nvidia.com/gpu", runtime or ours(), secret, pod)


def hold(trainer, name, held):
    """Whether the nodes of a job that is being deleted take their time."""
    place = (trainjob.GROUP, trainjob.VERSION, trainer.namespace, trainjob.PLURAL, name)
    change = {"metadata": {"annotations": {"held": "yes" if held else None}}}
    client.CustomObjectsApi(trainer.api).patch_namespaced_custom_object(*place, change)


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


def when_made_anew(trainer, name, before):
    while (state := trainer._state(name)) is None or state["metadata"]["uid"] == before:
        time.sleep(0.1)


def test_the_api_server_takes_the_job(trainer):
    def complete():
        made = when_made(trainer, "job")
        assert made["spec"]["trainer"]["command"] == COMMAND
        assert made["spec"]["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "4"
        assert made["spec"]["runtimeRef"]["kind"] == "TrainingRuntime"
        keys = [each["valueFrom"]["secretKeyRef"] for each in made["spec"]["trainer"]["env"] if "valueFrom" in each]
        assert keys == [{"name": "mlpipeline-minio-artifact", "key": key} for key in ("accesskey", "secretkey")]
        set_condition(trainer, "job", "Complete", "done")

    with meanwhile(complete):
        trainer.run(wanted())
    trainer.remove("job")
    require_gone(trainer, "job")


def test_nodes_with_gpus_keep_the_processor_and_memory_that_their_runtime_gives(trainer, cluster):
    """As a site has set them in the cluster; Trainer before 2.3 gives a node what the job says, and nothing else."""
    container = "/spec/template/spec/replicatedJobs/0/template/spec/template/spec/containers/0"
    patch = [{"op": "replace", "path": f"{container}/resources/limits/memory", "value": "48Gi"}]
    where = ("patch", "trainingruntime", "arnas", f"--namespace={trainer.namespace}", "--type=json")
    cluster.kubectl(*where, f"--patch={json.dumps(patch)}")
    made = trainer._jobs("create", wanted(runtime=trainer.runtime("arnas")), field_validation="Strict")
    assert made["spec"]["trainer"]["resourcesPerNode"] == {
        "requests": {"cpu": "2", "memory": "8Gi"},
        "limits": {"memory": "48Gi", "nvidia.com/gpu": "4"},
    }
    assert made["spec"]["runtimeRef"]["name"] == "arnas"
    assert "resourcesPerNode" not in wanted(gpus=0)["spec"]["trainer"]  # the runtime's own hold


def test_a_job_waits_in_the_queue_that_its_runtime_names_and_else_in_none(trainer, cluster):
    assert wanted()["metadata"]["labels"] == {"app.kubernetes.io/part-of": "arnas"}
    page = (Path(__file__).parents[2] / "docs" / "multi-gpu.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^kubectl -n kubeflow (label trainingruntime .*)$", page, re.MULTILINE)
    cluster.kubectl(*command.split(), "kueue.x-k8s.io/priority-class=low", f"--namespace={trainer.namespace}")
    made = trainer._jobs("create", wanted(runtime=trainer.runtime("arnas")), field_validation="Strict")
    queued = {"kueue.x-k8s.io/queue-name": "arnas", "kueue.x-k8s.io/priority-class": "low"}
    assert made["metadata"]["labels"] == {"app.kubernetes.io/part-of": "arnas"} | queued


def test_a_runtime_that_is_not_there_is_named(trainer):
    with pytest.raises(
        InvalidInput, match=r"There is no TrainingRuntime other in trainjob-\w+; kubectl apply -k manifests"
    ):
        trainer.runtime("other")


def test_a_task_joins_a_job_that_goes_on(trainer, capsys):
    before = trainer._jobs("create", wanted())["metadata"]["uid"]

    def complete():
        time.sleep(1)
        set_condition(trainer, "job", "Complete", "done")

    with meanwhile(complete):
        trainer.run(wanted())
    assert trainer._state("job")["metadata"]["uid"] == before
    assert "this task joins it" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["complete", "being deleted"])
def test_a_job_that_is_over_is_not_joined_but_begun_anew_when_it_is_gone(trainer, capsys, how):
    """The model is not in the store, or nobody would ask for the job."""
    before = trainer._jobs("create", wanted())["metadata"]["uid"]
    if how == "complete":
        set_condition(trainer, "job", "Complete", "done")
    else:
        hold(trainer, "job", True)
        trainer.remove("job")

    def end():
        if how == "being deleted":
            time.sleep(1)
            assert trainer._state("job")["metadata"]["uid"] == before
            hold(trainer, "job", False)
        when_made_anew(trainer, "job", before)
        set_condition(trainer, "job", "Complete", "done")

    with meanwhile(end):
        trainer.run(wanted())
    assert capsys.readouterr().err.count("is over; it is removed and begun anew, from its last checkpoint.") == 1


def test_the_pod_of_the_task_owns_the_job_and_gives_it_its_image(trainer, monkeypatch):
    core = client.CoreV1Api(trainer.api)
    core.create_namespaced_service_account(trainer.namespace, {"metadata": {"name": "default"}})
    containers = [{"name": "wait", "image": "argoexec:1"}, {"name": "main", "image": "registry.example.org/arnas:1"}]
    task = {"metadata": {"name": "task"}, "spec": {"containers": containers}}
    pod = core.create_namespaced_pod(trainer.namespace, task).metadata
    assert trainer.own_pod() is None
    monkeypatch.setenv("KFP_POD_NAME", "task")
    made = trainer._jobs("create", wanted(pod=trainer.own_pod()), field_validation="Strict")
    assert made["spec"]["trainer"]["image"] == "registry.example.org/arnas:1"
    (owner,) = made["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "v1", "kind": "Pod", "name": "task", "uid": pod.uid}


def answer_after(mistakes, call):
    """A method that raises mistakes first."""

    def answer(*told, **more):
        if mistakes:
            raise mistakes.pop()
        return call(*told, **more)

    return answer


def test_an_api_server_that_is_away_for_a_while_is_waited_for_whatever_is_asked(trainer, monkeypatch, capsys):
    core, jobs = client.CoreV1Api, client.CustomObjectsApi
    asked = [(jobs, f"{verb}_namespaced_custom_object") for verb in ("get", "create", "delete")]
    asked += [(core, "list_namespaced_pod")]
    for api, name in asked:
        away = [NewConnectionError(None, "refused"), client.ApiException(503, "Service Unavailable")]
        away[1].body = "no healthy upstream"

        monkeypatch.setattr(api, name, answer_after(away, getattr(api, name)))

    def complete():
        time.sleep(2)
        set_condition(trainer, "job", "Complete", "done")

    with meanwhile(complete):
        trainer.run(wanted())
    trainer.remove("job")
    require_gone(trainer, "job")
    assert capsys.readouterr().err.count("the cluster does not answer (Service Unavailable)") == len(asked)


def test_a_refusal_in_a_proxys_own_words_is_one_sentence(trainer, monkeypatch):
    def refuse(*told, **more):
        error = client.ApiException(403, "Forbidden")
        error.body = "{<html>\n not for you"
        raise error

    monkeypatch.setattr(client.CustomObjectsApi, "create_namespaced_custom_object", refuse)
    with pytest.raises(InvalidInput, match=r"refuses the TrainJob: {<html> not for you; manifests/components/trainer"):
        trainer.run(wanted())


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
        when_made_anew(trainer, "job", before)
        set_condition(trainer, "job", "Complete", "done")

    with meanwhile(complete):
        trainer.run(wanted())
    assert "is over; it is removed and begun anew" in capsys.readouterr().err


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
        trainer.run(wanted(runtime=trainer.runtime("arnas")))
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
            runtime="arnas", secret="", **told,
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


class Nodes:
    """Trainer and nodes that leave a model in the bucket at once, or a damaged one; `cleaning` is called at the end."""

    def __init__(self, model, damaged, cleaning):
        self.model, self.damaged, self.cleaning = model, damaged, cleaning

    def runtime(self, name):
        return ours()

    def own_pod(self):
        return None

    def run(self, job):
        images, output = job["spec"]["trainer"]["command"][4:6]
        with objects.fetched(images) as copy:
            artifacts.read(copy, "image_set")
        objects.upload(self.model, output)
        if self.damaged:
            objects.Bucket(output).put("weights", b"half")

    def remove(self, name):
        self.cleaning()


@pytest.fixture
def fetch(noise, bucket, tmp_path, monkeypatch):
    """Retrains by way of such nodes."""
    model, content = tmp_path / "trained", {"name": "resnet18"}
    model.mkdir()
    (model / "weights").write_bytes(b"weights")
    artifacts.write(model, "model", content, {})
    monkeypatch.setattr("arnas.stages.retrain.summary", lambda body: body["content"])
    told = {"name": "resnet18", "preset": "smoke", "overrides": {}, "checkpoints": bucket, "nodes": 2, "gpus": 0}
    told |= {"accelerator": "nvidia.com/gpu", "runtime": "arnas", "secret": ""}

    def fetch(damaged=False, cleaning=lambda: None):
        monkeypatch.setattr(Trainer, "here", lambda: Nodes(model, damaged, cleaning))
        assert trainjob.retrain(noise, tmp_path / "model", **told) == content

    return fetch


class Killed(BaseException):
    pass


def test_killed_at_any_moment_of_cleaning_up_a_retry_ends_well(fetch, bucket):
    remove = objects.Bucket.remove
    for moment in count():
        with pytest.MonkeyPatch.context() as patch:
            steps = iter(range(moment))

            def step(bucket, name):
                if next(steps, None) is None:  # noqa: B023
                    raise Killed
                remove(bucket, name)

            try:
                fetch(cleaning=partial(patch.setattr, objects.Bucket, "remove", step))
            except Killed:
                pass
            else:
                break
        fetch()
    assert moment > 4
    assert objects.Bucket(bucket).list() == {}


def test_a_damaged_model_is_not_published(fetch, tmp_path):
    with pytest.raises(InvalidInput, match="weights"):
        fetch(damaged=True)
    assert not (tmp_path / "model").exists()


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
    told |= {"gpus": 1, "accelerator": "nvidia.com/gpu", "runtime": "arnas", "secret": ""}
    with pytest.raises(InvalidInput, match=sentence):
        trainjob.retrain(noise, tmp_path / "model", **(told | change))
