"""Replayed passes. A GPU records; here a stand-in computes anew, from the same places to the same places."""

import pytest
import torch
from torch import nn

from arnas import graphs
from arnas.graphs import Graphed, Replayed


@pytest.fixture
def recording(monkeypatch):
    """Replay on the CPU; the list grows by one at each recording."""
    made = []
    monkeypatch.setattr(graphs, "_wanted", lambda device: True)
    monkeypatch.setattr(graphs, "_recorded", lambda function, device: made.append(function) or function)
    return made


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3)).double()


def passes(network, module, count=6):
    """Outputs and gradients of several passes in training mode."""
    found = []
    for seed in range(count):
        torch.manual_seed(seed)
        images = torch.rand(3, 1, 6, 6, dtype=torch.float64, requires_grad=True)
        output = network(images)
        found += [output, *torch.autograd.grad(output.square().sum(), [images, *module.parameters()])]
    return [*found, *module.buffers()]


def test_replayed_passes_equal_computed_ones_with_their_random_numbers_and_statistics(recording):
    plain, replayed = model(), model()
    for one, other in zip(passes(plain, plain), passes(Graphed(replayed), replayed), strict=True):
        assert torch.equal(one, other)
    assert len(recording) == 2  # forward and backward, once


def test_one_may_go_back_twice_but_not_after_the_next_pass(recording):
    network = Graphed(model().eval())
    for _ in range(4):
        images = torch.rand(2, 1, 6, 6, dtype=torch.float64, requires_grad=True)
        output = network(images)
    first, second = (torch.autograd.grad(output.sum(), images, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    network(images)
    with pytest.raises(RuntimeError, match="overwritten"):
        torch.autograd.grad(output.sum(), images)


def test_what_cannot_be_recorded_is_computed_and_one_line_says_why(monkeypatch, capsys):
    def refuse(function, device):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "_wanted", lambda device: True)
    monkeypatch.setattr(graphs, "_recorded", refuse)
    graphs._say_once.cache_clear()
    plain, replayed = model(), model()
    for one, other in zip(passes(plain, plain), passes(Graphed(replayed), replayed), strict=True):
        assert torch.equal(one, other)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "operation not permitted when stream is capturing" in said


def test_a_replay_that_differs_is_not_believed(monkeypatch, capsys):
    monkeypatch.setattr(graphs, "_wanted", lambda device: True)
    monkeypatch.setattr(graphs, "_recorded", lambda function, device: lambda: [2 * x for x in function()])
    graphs._say_once.cache_clear()
    plain, replayed = model(), model()
    for one, other in zip(passes(plain, plain), passes(Graphed(replayed), replayed), strict=True):
        assert torch.equal(one, other)
    assert "differed" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["shape", "mode", "frozen", "no_grad", "moved"])
def test_another_kind_of_pass_is_another_recording(recording, change):
    module = model().eval()
    network, count = Replayed(module), 4
    images = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    for _ in range(count):
        network(images)
    before = len(recording)
    if change == "shape":
        images = images[:1]
    elif change == "mode":
        module.train()
    elif change == "frozen":
        module.requires_grad_(False)
    elif change == "moved":
        module[0].weight.data = module[0].weight.data.clone()
    with torch.set_grad_enabled(change != "no_grad"):
        for _ in range(count):
            found = network(images)
    assert len(recording) > before
    if change != "mode":
        assert torch.equal(found, module(images))


def test_kinds_of_passes_that_come_once_are_not_recorded_and_old_ones_forgotten(recording):
    network = Replayed(model().eval())
    for size in range(1, 30):
        network(torch.rand(size, 1, 6, 6, dtype=torch.float64))
    assert not recording and len(network._passes) == graphs.LIMIT
