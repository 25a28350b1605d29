import os

import control_plane
import pytest
import torch
from hypothesis import settings

# two processes share two cores: more threads only get in each other's way
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

settings.register_profile("arnas", deadline=None, derandomize=True, max_examples=50, database=None)
settings.load_profile("arnas")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A real Kubernetes API server (tests/control_plane), shared by all tests: each works in namespaces of its own."""
    try:
        [control_plane.binary(name) for name in control_plane.BINARIES]
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    with control_plane.started(tmp_path_factory.mktemp("control-plane")) as running:
        yield running
