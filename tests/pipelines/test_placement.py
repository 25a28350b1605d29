"""What stands in the compiled YAML, as Kubeflow reads it: which task gets what."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from arnas.errors import InvalidInput
from pipelines import placement
from pipelines.generate import PIPELINES, ROOT, compile_all, compile_pipeline, place_of

GPU = {"search", "retrain", "whitebox", "blackbox", "transfer"}
CPU = {"prepare", "derive", "merge", "study", "report"}


class Task:
    """One task of a compiled pipeline: what its graph says of it, its container, and its platform section."""

    def __init__(self, specification: dict[str, Any], platform: dict[str, Any], task: dict[str, Any]):
        component = specification["components"][task["componentRef"]["name"]]
        self.task = task
        self.retry = task.get("retryPolicy", {})
        self.container = specification["deploymentSpec"]["executors"][component["executorLabel"]].get("container", {})
        self.resources = self.container.get("resources", {})
        self.pod = platform[component["executorLabel"]] if self.container else {}
        self.environment = {entry["name"]: entry.get("value") for entry in self.container.get("env", [])}
        self.name = re.sub(r"-\d+$", "", task["taskInfo"]["name"])

    def mounts(self) -> dict[str, dict[str, Any]]:
        return {mount["mountPath"]: mount for mount in self.pod["emptyDirMounts"]}

    def channel(self, parameter: str) -> str:
        """The parameter of the pipeline that an input of the task comes from."""
        return str(self.task["inputs"]["parameters"][parameter]["componentInputParameter"])


def tasks_of(root: Path) -> list[Task]:
    """All tasks that are pods, of all pipelines below a folder; at every depth."""
    found = []
    for name in PIPELINES:
        specification, platform = yaml.safe_load_all(place_of(name, root).read_text())
        executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        for graph in (specification["root"], *specification["components"].values()):
            for task in graph.get("dag", {}).get("tasks", {}).values():
                if "executorLabel" in specification["components"][task["componentRef"]["name"]]:
                    found.append(Task(specification, executors, task))
    return found


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return tasks_of(ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled with a site's placement."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "my.yaml").write_text("""
gpu_tasks:
  cpu: {limit: "6"}
  memory: {request: 8Gi}
  affinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms: [{matchExpressions: [{key: gpu, operator: In, values: [a100, h100]}]}]
  queue: gpus
  priority: low
cpu_tasks:
  hours: 0.5
  tolerations: [{key: spot, value: "yes", effect: NoExecute, tolerationSeconds: 60}]
parallelism: 2
private_ca: true
environment: {HTTPS_PROXY: "http://proxy.example:3128"}
secret_environment:
  TRACKER_TOKEN: {secret: tracker, key: token}
  PROXY_PASSWORD: {secret: proxy, key: .password}
""")
    compile_all(folder / "out", placement=folder / "my.yaml")
    return folder / "out"


@pytest.fixture(scope="module")
def sited(site: Path) -> list[Task]:
    return tasks_of(site)


def test_every_stage_is_placed(tasks: list[Task]) -> None:
    assert {task.name for task in tasks} == GPU | CPU
    assert all(task.pod for task in tasks)


def test_only_stages_that_compute_ask_for_a_gpu_and_as_many_as_they_are_told_of(tasks: list[Task]) -> None:
    for task in tasks:
        accelerator = task.resources.get("accelerator")
        assert bool(accelerator) == (task.name in GPU)
        if accelerator:
            count, kind = (re.findall(r"\['(.+?)'\]", accelerator[key])[0] for key in ("resourceCount", "resourceType"))
            assert task.channel(count).endswith("gpus") and task.channel("gpus") == task.channel(count)
            assert task.channel(kind).endswith("accelerator")


def test_the_parameters_of_placement_are_of_the_kinds_that_the_driver_reads() -> None:
    for name in PIPELINES:
        specification, _ = yaml.safe_load_all(place_of(name).read_text())
        parameters = specification["root"]["inputDefinitions"]["parameters"]
        kinds = {key: parameters[key]["parameterType"] for key in placement.RUN}
        texts = dict.fromkeys(("gpus", "accelerator", "endpoint", "secret", "pull_secret"), "STRING")
        assert kinds == texts | {"gpu_pool": "STRUCT", "cpu_pool": "STRUCT", "gpu_tolerations": "LIST"}
        for key in ("secret", "pull_secret"):  # the driver refuses an empty name
            assert parameters[key]["defaultValue"]


def test_each_pool_has_its_selector_and_gpus_their_tolerations(tasks: list[Task]) -> None:
    for task in tasks:
        selector = task.pod["nodeSelector"]["nodeSelectorJson"]["componentInputParameter"]
        assert selector.endswith("gpu_pool" if task.name in GPU else "cpu_pool")
        tolerations = task.pod.get("tolerations", [])
        assert len(tolerations) == (2 if task.name in GPU else 0)
        if tolerations:
            assert {"key": "nvidia.com/gpu", "operator": "Exists"} in tolerations
            (told,) = [entry["tolerationJson"] for entry in tolerations if "tolerationJson" in entry]
            assert told["componentInputParameter"].endswith("gpu_tolerations")


def test_shm_is_memory_where_a_stage_computes_and_tmp_is_writable_everywhere(tasks: list[Task]) -> None:
    for task in tasks:
        assert "medium" not in task.mounts()["/tmp"]
        shm = task.mounts().get("/dev/shm", {})
        assert shm.get("medium") == ("Memory" if task.name in GPU else None)


def test_no_task_runs_as_root(tasks: list[Task]) -> None:
    for task in tasks:
        assert task.pod["securityContext"] == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}


def test_only_tasks_that_speak_to_the_store_get_its_credentials_and_by_name(tasks: list[Task]) -> None:
    for task in tasks:
        secrets = task.pod.get("secretAsEnv", [])
        assert len(secrets) == (task.name in GPU | {"prepare"})
        for secret in secrets:
            assert secret["secretNameParameter"]["componentInputParameter"].endswith("secret")
            assert secret["optional"] is True
            assert {entry["secretKey"]: entry["envVar"] for entry in secret["keyToEnv"]} == {
                "accesskey": "AWS_ACCESS_KEY_ID",
                "secretkey": "AWS_SECRET_ACCESS_KEY",
            }
            assert task.channel("endpoint").endswith("endpoint")


def test_retries_outlast_all_attempts_and_waits_together(tasks: list[Task]) -> None:
    for task in tasks:
        count, factor = task.retry["maxRetryCount"], task.retry["backoffFactor"]
        wait, longest = (int(task.retry[key][:-1]) for key in ("backoffDuration", "backoffMaxDuration"))
        attempt = int(task.pod["activeDeadlineSeconds"])
        assert count > 0 and factor == int(factor)  # Argo takes whole numbers only
        assert longest >= (count + 1) * attempt + sum(wait * factor**number for number in range(int(count)))


@pytest.mark.parametrize(
    ("count", "wait", "factor", "longest"),
    [(0, 3600, 10, 0), (1, 3600, 10, 3600), (4, 3, 10, 3000), (100, 3600, 1, 3600), (100, 0, 10, 0)],
)
def test_no_wait_is_longer_than_the_site_allows(
    count: int, wait: int, factor: int, longest: int, tmp_path: Path
) -> None:
    """Argo itself multiplies the wait after each attempt, and knows no bound."""
    last = 0
    for attempt in range(count):
        last = last * factor if attempt else wait
    assert last == longest
    retries = f"count: {count}, wait: {wait}, factor: {factor}"
    (tmp_path / "my.yaml").write_text(f"retries: {{{retries}, longest: {longest}}}")
    assert placement.load(tmp_path / "my.yaml").retries.longest == longest
    if longest:
        (tmp_path / "my.yaml").write_text(f"retries: {{{retries}, longest: {longest - 1}}}")
        with pytest.raises(InvalidInput, match=f"the last wait would be of {longest} s, above the longest"):
            placement.load(tmp_path / "my.yaml")


def test_the_longest_placement_is_compiled(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        "{retries: {count: 100, wait: 3600, factor: 1, longest: 86400}, gpu_tasks: {hours: 8760}}"
    )
    compile_all(tmp_path / "out", placement=tmp_path / "my.yaml")
    for task in tasks_of(tmp_path / "out"):
        assert int(task.retry["backoffMaxDuration"][:-1]) < 2**63 / 1e9  # Go counts nanoseconds


def test_the_image_is_pulled_once_with_a_secret_that_may_be_absent(tasks: list[Task]) -> None:
    for task in tasks:
        assert task.pod["imagePullPolicy"] == "IfNotPresent"
        (secret,) = task.pod["imagePullSecret"]
        assert secret["secretNameParameter"]["componentInputParameter"].endswith("pull_secret")


def test_only_preparation_is_never_cached(tasks: list[Task]) -> None:
    for task in tasks:
        assert bool(task.task["cachingOptions"].get("enableCache")) == (task.name != "prepare")


def test_a_sites_limits_affinity_queue_and_times_are_those_of_its_kind_of_task(sited: list[Task]) -> None:
    for task in sited:
        labels = task.pod["podMetadata"]["labels"]
        assert labels.pop("app.kubernetes.io/part-of") == "arnas"
        if task.name in GPU:
            assert (task.resources["resourceCpuLimit"], task.resources["resourceMemoryRequest"]) == ("6", "8Gi")
            assert task.resources["resourceCpuRequest"] == "1"  # as committed
            assert "h100" in str(task.pod["nodeAffinity"])
            assert labels == {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "low"}
        else:
            assert "nodeAffinity" not in task.pod and not labels
            (spot,) = task.pod["tolerations"]
            assert (spot["operator"], spot["effect"], int(spot["tolerationSeconds"])) == ("Equal", "NoExecute", 60)
            assert task.pod["activeDeadlineSeconds"] == "1800"
        assert task.environment["HTTPS_PROXY"] == "http://proxy.example:3128"


def test_a_sites_own_secrets_reach_every_task_by_name_and_must_be_there(sited: list[Task]) -> None:
    for task in sited:
        told = {
            (secret["secretNameParameter"]["runtimeValue"]["constant"], entry["secretKey"], entry["envVar"])
            for secret in task.pod["secretAsEnv"]
            if "runtimeValue" in secret["secretNameParameter"] and not secret["optional"]
            for entry in secret["keyToEnv"]
        }
        assert told == {("tracker", "token", "TRACKER_TOKEN"), ("proxy", ".password", "PROXY_PASSWORD")}
        assert not {"TRACKER_TOKEN", "PROXY_PASSWORD"} & task.environment.keys()


def test_a_private_ca_comes_out_of_the_secret(sited: list[Task]) -> None:
    for task in sited:
        volumes = task.pod.get("secretAsVolume", [])
        assert len(volumes) == (task.name in GPU | {"prepare"})
        for volume in volumes:
            assert task.environment["AWS_CA_BUNDLE"] == f"{volume['mountPath']}/ca.crt"


def test_loops_are_as_wide_as_the_site_allows(site: Path) -> None:
    text = (site / "pipelines" / "arnas.yaml").read_text()
    assert re.findall(r"parallelismLimit: (\d+)", text) == ["2", "2"]


def test_mig_and_amd_are_names_in_a_file(tmp_path: Path) -> None:
    for name in ("nvidia.com/mig-1g.10gb", "amd.com/gpu"):
        (tmp_path / "my.yaml").write_text(f"accelerator: {name}\n")
        file = compile_pipeline("arnas", tmp_path / "arnas.yaml", placement=tmp_path / "my.yaml")
        specification, _ = yaml.safe_load_all(file.read_text())
        assert specification["root"]["inputDefinitions"]["parameters"]["accelerator"]["defaultValue"] == name
        containers = [each["container"] for each in specification["deploymentSpec"]["executors"].values()]
        asked = [each["resources"]["accelerator"] for each in containers if "accelerator" in each["resources"]]
        assert {each["resourceType"] for each in asked} == {"{{$.inputs.parameters['pipelinechannel--accelerator']}}"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gpu_poll: {}", r"has no setting gpu_poll; near it are gpu_pool"),
        ("gpu_tasks: {memory: {limits: 1Gi}}", r"has no setting gpu_tasks\.memory\.limits; near it are limit"),
        ("gpus: 1", r"gpus = 1: Input should be a valid string"),
        ("gpu_tasks: {memory: {limit: 16 GB}}", r"gpu_tasks\.memory\.limit = '16 GB'"),
        ("secret: ''", r"secret = ''"),
        ("retries: {factor: 1.5}", r"retries\.factor = 1\.5"),
        ("gpu_tolerations: [{key: a, effect: Never}]", r"gpu_tolerations\.0\.effect = 'Never'"),
        ("gpu_tasks: {affinity: {nodeSelectorTerms: []}}", r"gpu_tasks\.affinity .*Invalid V1NodeAffinity"),
        ("gpu_tolerations: [{kee: a}]", r"has no setting gpu_tolerations\.0\.kee; near it are key"),
        ("user: 0", r"user = 0"),
        ("endpoint: store:9000", r"endpoint = 'store:9000'"),
        ("endpoint: http://me:planted@store", r"endpoint holds a user or password"),
        ("environment: {AWS_SECRET_ACCESS_KEY: planted}", r"AWS_SECRET_ACCESS_KEY would stand in the compiled YAML"),
        ("environment: {hub_token: planted}", r"hub_token would stand in the compiled YAML.*secret_environment"),
        ("environment: {PGPASSWORD: planted}", r"PGPASSWORD would stand in the compiled YAML"),
        ("environment: {CLIENT_SECRET: planted}", r"CLIENT_SECRET would stand in the compiled YAML"),
        ("environment: {DB_PASSWD: planted}", r"DB_PASSWD would stand in the compiled YAML"),
        ("environment: {PRIVATE_KEY: planted}", r"PRIVATE_KEY would stand in the compiled YAML"),
        ("environment: {GIT_CREDENTIALS: planted}", r"GIT_CREDENTIALS would stand in the compiled YAML"),
        ("environment: {SMTP_PASS: planted}", r"SMTP_PASS would stand in the compiled YAML"),
        ("environment: {DB_PWD: planted}", r"DB_PWD would stand in the compiled YAML"),
        ("environment: {WANDB_KEY: planted}", r"WANDB_KEY would stand in the compiled YAML"),
        ("environment: {ApiKey: planted}", r"ApiKey would stand in the compiled YAML"),
        ("environment: {HTTPS_PROXY: 'http://me:planted@proxy:3128'}", r"HTTPS_PROXY holds a user or password"),
        ("environment: {HTTPS_PROXY: 'http://planted@proxy:3128'}", r"HTTPS_PROXY holds a user or password"),
        ("environment: {HTTPS_PROXY: 'me:planted@proxy:3128'}", r"HTTPS_PROXY holds a user or password"),
        ("environment: [planted]", r"environment must be a mapping"),
        ("secret_environment: {HUB: planted}", r"HUB must name a secret and its key, such as"),
        ("secret_environment: {HUB: {secret: hub}}", r"HUB must name a secret and its key, such as"),
        ("secret_environment: {HUB: {secret: hub, key: a, value: planted}}", r"HUB must name a secret and its key"),
        ("secret_environment: {HUB: {secret: hub, key: a b}}", r"secret_environment\.HUB\.key = 'a b'"),
        ("secret_environment: {1A: {secret: hub, key: a}}", r"1A"),
        ("retries: {count: 40}", r"retries = .*: the last wait would be of 16492674416640 s, above the longest"),
        (
            "gpu_tasks: {cpu: {request: 1500m, limit: '1'}}",
            r"gpu_tasks\.cpu = .*1500m.*: the request is above the limit;",
        ),
        ("cpu_tasks: {memory: {request: 5G}}", r"cpu_tasks\.memory = .*5G.*4Gi.*: the request is above"),
        ("- a list", r"must hold keys such as gpu_pool:, but is a list"),
        ("a: [", r"cannot be read"),
    ],
)
def test_a_wrong_placement_is_refused_in_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=sentence) as told:
        placement.load(tmp_path / "my.yaml")
    assert "\n" not in str(told.value) and "planted" not in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        "gpu_tasks: {cpu: {request: '1.0', limit: 1000m}, memory: {request: 1024Mi, limit: 1Gi}}",
        "gpu_tasks: {cpu: {request: '64', limit: null}, memory: {request: 1Ti, limit: null}}",
        "environment: {TORCH_HOME: /tmp/torch, HUB: 'https://hub.example/@scope', AUTHOR: me@example.org}",
        "environment: {TOKENIZERS_PARALLELISM: 'false', KEYBOARD: us, MONKEY: a, PASSES: '2', COMPASS: n, BYPASS: '1'}",
        "environment: {SSH_KEY_FILE: /tmp/key, AWS_SHARED_CREDENTIALS_FILE: /tmp/aws, PWD: /tmp, PASS_THROUGH: '1'}",
    ],
)
def test_what_is_right_is_taken(text: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(text)
    placement.load(tmp_path / "my.yaml")


def test_the_placement_that_the_documentation_shows_is_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(# my.yaml.*?)```", (ROOT / "docs" / "gpu-pools.md").read_text(), flags=re.DOTALL)
    (tmp_path / "my.yaml").write_text(text)
    assert placement.load(tmp_path / "my.yaml").gpu_tasks.queue == "arnas"


def test_no_credential_of_whoever_compiles_is_in_the_compiled_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "HUB_TOKEN"):
        monkeypatch.setenv(name, "planted-7f3a")
    (tmp_path / "my.yaml").write_text("secret_environment: {HUB_TOKEN: {secret: hub, key: token}}")
    written = compile_all(tmp_path / "out", placement=tmp_path / "my.yaml")
    assert len(written) > 10
    assert not [file for file in written if "planted-7f3a" in file.read_text()]


@pytest.mark.parametrize("wanted", [False, True])
def test_a_run_begins_with_preflight_where_the_site_wants_it(wanted: bool, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"preflight: {str(wanted).lower()}\n")
    compile_all(tmp_path / "out", placement=tmp_path / "my.yaml")
    for name in PIPELINES:
        specification = next(yaml.safe_load_all(place_of(name, tmp_path / "out").read_text()))
        graphs = [specification["root"]["dag"], *(c["dag"] for c in specification["components"].values() if "dag" in c)]
        graphs = [graph for graph in graphs if "preflight" in graph["tasks"]]
        assert len(graphs) == wanted
        for graph in graphs:
            assert "dependentTasks" not in graph["tasks"]["preflight"]
            first = "for-loop-1" if name == "transfer" else "prepare"  # which has a data set in each round
            assert "preflight" in graph["tasks"][first]["dependentTasks"]
