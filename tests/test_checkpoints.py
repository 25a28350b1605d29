import os
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arnas.checkpoints import CheckpointStore, Keeper
from arnas.errors import Interrupted, InvalidInput

tensors = st.builds(
    lambda shape, dtype: (100 * torch.rand(shape)).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16, torch.uint8]),
)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nests = st.recursive(
    plain | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=10,
)


def same(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


@given(st.dictionaries(st.text(), nests, max_size=4))
def test_any_state_comes_back_as_it_was(tmp_path_factory, state):
    store = CheckpointStore(tmp_path_factory.mktemp("store"))
    store.save("key", state)
    assert same(store.load("key"), state)


def test_optimizer_states_come_back(tmp_path):
    weight = torch.nn.Parameter(torch.rand(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    CheckpointStore(tmp_path).save("key", {"optimizer": optimizer.state_dict()})
    other = torch.optim.Adam([torch.nn.Parameter(torch.rand(3))])
    other.load_state_dict(CheckpointStore(tmp_path).load("key")["optimizer"])
    assert same(other.state_dict(), optimizer.state_dict())


def test_there_is_none_before_one_is_saved(tmp_path):
    assert CheckpointStore(tmp_path / "none").load("key") is None


def test_a_damaged_checkpoint_is_named_and_not_believed(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save("key", {"weight": torch.rand(100)})
    file = tmp_path / "key.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InvalidInput, match=f"Checkpoint {file} is damaged .*delete it"):
        store.load("key")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be written"):
        CheckpointStore(tmp_path / "file" / "store").save("key", {})


WRITER = """
import sys, torch
from arnas.checkpoints import CheckpointStore
store = CheckpointStore(sys.argv[1])
number = 0
while True:
    number += 1
    store.save("key", {"number": number, "weight": torch.full((200_000,), float(number))})
    print(number, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    for saves in (1, 2, 4):
        with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True) as writer:
            for _ in range(saves):
                seen = int(writer.stdout.readline())
            writer.kill()
        state = CheckpointStore(tmp_path).load("key")
        assert state["number"] >= seen
        assert torch.equal(state["weight"], torch.full((200_000,), float(state["number"])))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_and_leaves_with_its_status(tmp_path, number):
    store, before = CheckpointStore(tmp_path), signal.getsignal(number)
    with pytest.raises(Interrupted) as left, Keeper(store, "key", "search") as keeper:
        keeper.offer(lambda: {"step": 1})
        assert store.load("key") is None  # the interval has not passed
        os.kill(os.getpid(), number)
        keeper.offer(lambda: {"step": 2})
    assert store.load("key") == {"step": 2}
    assert left.value.code == 128 + number and "search was interrupted" in left.value.message
    assert signal.getsignal(number) is before


def test_the_state_is_saved_when_the_interval_has_passed(tmp_path):
    with Keeper(CheckpointStore(tmp_path), "key", "search", interval=0) as keeper:
        keeper.offer(lambda: {"step": 1})
        assert keeper.restore() == {"step": 1}
