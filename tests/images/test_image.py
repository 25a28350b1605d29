"""What must be true of the image. `make test-image` builds it and runs these; PRESET=digits runs the demo's settings.

The image is built as `make image` builds it, from a copy of the tree in which secrets lie about.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from docker.models.images import Image
from kfp import components, local

import arnas
from arnas._image import IMAGE
from pipelines.__main__ import main

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),  # docker's client leaves streams open
    pytest.mark.filterwarnings("ignore:.*have no effect in the current local runner:UserWarning"),
]

ROOT = Path(__file__).parents[2]
BASE = "localhost/arnas-base:bookworm"  # made by images/base
REVISION = "0123456789abcdef0123456789abcdef01234567"
PLANTED = "planted-5d1f0c7e9b"  # every secret begins so
STRICT = {  # the restricted pod security standard, a read-only root on top of it, and no network at all
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "network_mode": "none",
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of docker's engine or, where there is none, of podman's service, which this starts."""
    if _answers(os.environ.get("DOCKER_HOST")):
        yield os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        return
    if not shutil.which("podman"):
        pytest.fail("This needs docker with an engine, or podman: apt-get install podman buildah runc debootstrap")
    address = f"unix://{tmp_path_factory.mktemp('podman') / 'socket'}"
    environment = dict(os.environ)
    if not Path("/run/systemd/system").exists():
        environment["CONTAINERS_CONF"] = str(Path(__file__).with_name("containers.conf"))
    with subprocess.Popen(["podman", "system", "service", "--time=0", address], env=environment) as service:
        try:
            deadline = time.monotonic() + 60
            while not _answers(address):
                assert time.monotonic() < deadline, "podman's service does not answer."
                time.sleep(0.2)
            yield address
        finally:
            service.terminate()


def _answers(address: str | None) -> bool:
    try:
        with closing(docker.DockerClient(address)) as client:
            return client.ping()
    except docker.errors.DockerException:
        return False


@pytest.fixture(scope="session")
def engine(host: str) -> Iterator[docker.DockerClient]:
    with closing(docker.DockerClient(host, timeout=1800)) as client:
        yield client


@pytest.fixture(scope="session")
def image(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Image:
    tree = tmp_path_factory.mktemp("tree")
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    for name in ("netrc", ".env", "arnas/credentials", "components/retrain/.env"):
        (tree / name).write_text(f"machine registry.invalid login me password {PLANTED}-{name}\n")

    environment = {"BASE": BASE, "REVISION": REVISION} | os.environ
    environment |= {"NETRC": str(tree / "netrc"), "AWS_SECRET_ACCESS_KEY": f"{PLANTED}-environment"}
    if environment["BASE"] == BASE and not engine.images.list(BASE):
        subprocess.run([ROOT / "images/base"], check=True)
    subprocess.run([tree / "images/build"], check=True, env=environment)
    return engine.images.get(IMAGE)


@pytest.fixture
def run(engine: docker.DockerClient, image: Image) -> Callable[..., str]:
    """Run a command in the image, strictly; returns what it wrote, errors too, whatever its exit status."""

    def run(*command: str, **options: object) -> str:
        container = engine.containers.run(image.id, list(command), detach=True, **STRICT | options)
        try:
            container.wait()
            return container.logs().decode()
        finally:
            container.remove(force=True)

    return run


def test_the_tag_is_the_version_and_the_labels_say_it_too(image: Image) -> None:
    assert {tag.rpartition("/")[2] for tag in image.tags} == {IMAGE} == {f"arnas:{arnas.__version__}"}
    assert image.labels["org.opencontainers.image.version"] == arnas.__version__
    assert image.labels["org.opencontainers.image.revision"] == REVISION


def test_the_user_is_a_number_and_not_root(image: Image, run: Callable[..., str]) -> None:
    assert image.attrs["Config"]["User"] == "1000:1000"
    assert run("id", "-u") == "1000\n"


def test_what_runs_here_has_no_network_and_can_write_only_to_tmp(run: Callable[..., str]) -> None:
    assert run("ls", "/sys/class/net") == "lo\n"
    assert "Read-only file system" in run("touch", "/opt/arnas/file", user="0")
    assert run("sh", "-c", "cd && pwd && touch file && ls") == "/tmp\nfile\n"


def test_nothing_of_ours_could_be_written_even_if_the_root_were_not_read_only(run: Callable[..., str]) -> None:
    search = ["find", "/", "-xdev", "-writable", "-not", "-type", "l", "-not", "-path", "/proc/*"]
    writable = run(*search, read_only=False, tmpfs={}).splitlines()
    assert "/tmp" in writable
    assert [path for path in writable if path.startswith(("/opt", "/usr", "/etc"))] == []


def test_there_is_no_compiler_no_installer_and_no_cache(run: Callable[..., str]) -> None:
    found = run("sh", "-c", "for name in sh cc gcc g++ clang make ld; do command -v $name; done")
    assert [Path(file).name for file in found.split()] == ["sh"]
    assert "No module named pip" in run("python", "-m", "pip")
    cached = "/root/.cache /var/cache/apt/archives/*.deb /var/lib/apt/lists/*_* /build"
    assert run("sh", "-c", f"ls -d /root {cached} 2>/dev/null", user="0") == "/root\n"


def test_no_secret_of_the_build_is_in_a_layer(image: Image) -> None:
    ours = (ROOT / "arnas/_image.py").read_bytes()
    assert _occur([ours, PLANTED.encode()], image.save()) == [True, False]
    assert PLANTED not in json.dumps([image.attrs, image.history()])


def _occur(wanted: list[bytes], chunks: Any) -> list[bool]:
    """Which of the byte strings stand in the stream."""
    found, tail = [False] * len(wanted), b""
    for chunk in chunks:
        window = tail + chunk
        found = [was or text in window for was, text in zip(found, wanted, strict=True)]
        tail = window[-max(map(len, wanted)) :]
    return found


def test_an_index_with_a_password_is_refused_before_the_builder_sees_it() -> None:
    told = os.environ | {"PIP_INDEX_URL": f"https://me:{PLANTED}@mirror.invalid/simple"}
    refused = subprocess.run([ROOT / "images/build"], env=told, capture_output=True, text=True)
    assert refused.returncode == 2 and "put them into a netrc file" in refused.stderr
    assert PLANTED not in refused.stdout + refused.stderr


def test_the_command_line_counts_the_published_network(run: Callable[..., str]) -> None:
    said = run("arnas", "info", "arnas-cifar10")
    assert "4,520,394" in said
    assert "arnas-cifar10" in said.splitlines()[0]  # no warning comes first


@pytest.mark.parametrize("file", sorted(ROOT.glob("components/*/component.yaml")), ids=lambda file: file.parent.name)
def test_every_component_reaches_its_stage_which_says_what_is_missing(file: Path, run: Callable[..., str]) -> None:
    spec = yaml.safe_load(file.read_text())
    (executor,) = spec["deploymentSpec"]["executors"].values()
    told = {"inputs": _absent(spec["root"]["inputDefinitions"]), "outputs": _absent(spec["root"]["outputDefinitions"])}
    told["outputs"]["outputFile"] = "/tmp/output.json"
    container = executor["container"]
    said = run(*container["command"], *(json.dumps(told) if text == "{{$}}" else text for text in container["args"]))
    own = {"prepare": "dataset cifar10 needs path", "preflight": "no kubeconfig"}
    (sentence,) = re.findall(r"^arnas\.errors\.InvalidInput: (.*)", said, flags=re.MULTILINE)
    assert own.get(file.parent.name, "/tmp/absent/") in sentence


def _absent(definitions: dict[str, Any]) -> dict[str, Any]:
    """What KFP hands to a task: here the parameters' defaults, and artifacts that are not there."""
    artifacts = {
        name: {"artifacts": [{"name": name, "type": one["artifactType"], "uri": f"/tmp/absent/{name}"}]}
        for name, one in definitions.get("artifacts", {}).items()
    }
    parameters = {name: one.get("defaultValue") for name, one in definitions.get("parameters", {}).items()}
    return {"artifacts": artifacts, "parameterValues": parameters}


def test_the_demo_pipeline_runs_from_its_yaml_alone(
    host: str, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["compile", "--image", image.tags[0], "--output", str(tmp_path)]) == 0
    pipeline = components.load_component_from_file(str(tmp_path / "pipelines/arnas.yaml"))

    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o777)  # the tasks are user 1000
    monkeypatch.setenv("DOCKER_HOST", host)
    runner = local.DockerRunner(**STRICT, environment={"OMP_NUM_THREADS": "1"})  # the two models are at it side by side
    local.init(runner, pipeline_root=str(root))
    preset = os.environ.get("PRESET") or "smoke"
    models = ["searched", "resnet18"]
    task = pipeline(preset=preset, models=models, checkpoints=str(root / "checkpoints"), gpus="0", endpoint="")

    scores = json.loads(Path(task.outputs["scores"].path).read_text())
    assert list(scores["models"]) == models
    assert Path(task.outputs["report"].path).read_text().startswith("<!DOCTYPE html>")
