import os
import signal

import pytest
import torch
from torch import nn

from arnas.checkpoints import CheckpointStore, Keeper
from arnas.errors import Interrupted, InvalidInput
from arnas.evaluation.units import Shard, Unit, work


def job(model, count=4, at=None, event=None):
    """Units that each write a random number of their own after a pass; `event` comes during the pass of unit `at`."""
    state = {"done": 0, "results": torch.zeros(count)}

    def run(index):
        torch.manual_seed(index)
        if index == at:
            event()
        model(torch.rand(3, 2))
        state["results"][index] = torch.rand(1).item()

    return state, [Unit(lambda index=index: run(index), 3) for index in range(count)]


def test_asked_to_stop_it_leaves_in_the_midst_of_a_unit_and_goes_on_with_that_unit(tmp_path, capsys):
    model = nn.Linear(2, 2)
    expected, units = job(model)
    with Keeper(CheckpointStore(tmp_path), "a", "test") as keeper:
        work("test", units, expected, [model], keeper)

    state, units = job(model, at=2, event=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as stop, Keeper(CheckpointStore(tmp_path), "b", "test") as keeper:
        work("test", units, state, [model], keeper)
    assert stop.value.code != 0 and not model._forward_hooks

    state, units = job(model)
    with Keeper(CheckpointStore(tmp_path), "b", "test") as keeper:
        restored = keeper.restore()
        assert restored["done"] == 2 and restored["results"][2:].tolist() == [0, 0]
        state |= restored
        work("test", units, state, [model], keeper)
    assert torch.equal(state["results"], expected["results"])
    assert "goes on after 2 of 4" in capsys.readouterr().err


def test_finished_work_is_not_done_again(tmp_path, capsys):
    model = nn.Linear(2, 2)
    state, units = job(model)
    with Keeper(CheckpointStore(tmp_path), "a", "test") as keeper:
        work("test", units, state, [model], keeper)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    with Keeper(CheckpointStore(tmp_path), "a", "test") as keeper:
        work("test", units, keeper.restore(), [model], keeper)
    assert not passes and "reused" in capsys.readouterr().err


def test_the_bar_ends_at_its_total_whatever_the_passes_were(tmp_path, capsys):
    model = nn.Linear(2, 2)
    _, units = job(model)
    units = [Unit(unit.run, passes) for unit, passes in zip(units, (1, 100, 3, 0), strict=True)]
    with Keeper(CheckpointStore(tmp_path), "a", "test") as keeper:
        work("test", units, {"done": 0}, [model], keeper)
    assert "104/104" in capsys.readouterr().err


def test_an_error_takes_the_hooks_off_the_models(tmp_path):
    model = nn.Linear(2, 2)

    def fail():
        raise KeyError

    state, units = job(model, at=1, event=fail)
    with pytest.raises(KeyError), Keeper(CheckpointStore(tmp_path), "a", "test") as keeper:
        work("test", units, state, [model], keeper)
    assert not model._forward_hooks


def test_the_shards_of_any_count_take_every_block_once():
    for count in range(1, 9):
        shards = [Shard.parse(f"{number}/{count}") for number in range(1, count + 1)]
        assert [str(shard) for shard in shards] == [f"{number}/{count}" for number in range(1, count + 1)]
        assert all(sum(shard.takes(block) for shard in shards) == 1 for block in range(20))


@pytest.mark.parametrize("text", ["", "0/3", "4/3", "1", "1/0", "a/b", "1/3 ", "-1/3", "1.0/3"])
def test_what_is_no_share_of_the_work_is_refused_by_name(text):
    with pytest.raises(InvalidInput, match=f"shard {text!r} is no share of the work; write for example 2/4"):
        Shard.parse(text)
