"""The folded copy computes what the network computes: in double precision, where rounding does not hide a mistake."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from arnas import config, runtime
from arnas.space.folding import Folded, attackable
from arnas.space.layout import NODES
from arnas.space.network import build, describe
from arnas.space.operations import OPERATIONS

GENOTYPE, RESNET = "genotype", "resnet18"


def network(architecture=GENOTYPE, **changes):
    """A network in double precision whose batch norms have random parameters and statistics, in training mode."""
    torch.manual_seed(0)
    names = list(OPERATIONS)
    # each of the eight edges of a cell leads from its inputs, so that those of reduce cells have stride 2
    node = lambda first: [[names[first % 7], 0], [names[(first + 1) % 7], 1]]  # noqa: E731
    cell = [node(2 * index) for index in range(NODES)]
    description = {
        "architecture": architecture,
        "cells": {kind: cell for kind in ("accurate", "reduce", "robust")},
        "layout": "A1 D2 R2 D2",
        "channels": 3,
        "classes": 5,
        "channels_in": 3,
        "auxiliary": True,
        "drop_path": 0.5,
    }
    net = build(description | changes).double()
    shake(net)
    return runtime.place(net, torch.device("cpu")).train()


def shake(net):
    """Change all parameters and statistics in place."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def require_equal(net, folded, images):
    """Logits and the gradient of the pixels are the same, to 1e-12 of their size."""
    net = copy.deepcopy(net).eval()
    labels = torch.arange(len(images)) % 5
    found = []
    for model in (net, folded):
        pixels = images.clone().requires_grad_()
        logits = model(pixels)
        found.append((logits, *torch.autograd.grad(functional.cross_entropy(logits, labels), pixels)))
    for expected, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("architecture", [GENOTYPE, RESNET])
@pytest.mark.parametrize(("count", "side"), [(3, 16), (1, 13), (2, 9)])
def test_the_folded_copy_has_the_networks_logits_and_pixel_gradient(architecture, count, side):
    net = network(architecture)
    folded = Folded(net).refresh()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    require_equal(net, folded, torch.rand(count, 3, side, side, dtype=torch.float64))


@pytest.mark.parametrize("architecture", [GENOTYPE, RESNET])
def test_it_keeps_its_function_until_it_is_refreshed(architecture):
    net, images = network(architecture), torch.rand(4, 3, 9, 9, dtype=torch.float64)
    before, folded = copy.deepcopy(net), Folded(net)
    model = folded.refresh()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net.with_auxiliary(images)[0].square().sum().backward()
    optimizer.step()
    require_equal(before, model, images)
    assert folded.refresh() is model
    require_equal(net, model, images)
    net.load_state_dict(before.state_dict())
    require_equal(before, folded.refresh(), images)


NAMES = [*config.RIVALS, *config.genotypes()]
# batch norms that no convolution directly precedes: the first of every block, and the last of all
KEPT = {"preactresnet18": 8 + 1, "wrn-28-10": 12 + 1, "wrn-34-10": 15 + 1, "densenet121": 58 + 3 + 1}


@pytest.mark.parametrize("name", NAMES)
def test_of_every_architecture_the_folded_copy_follows_the_network_exactly(name):
    torch.manual_seed(0)
    net = build(describe(name, (3, 12, 12), 5, channels=2, layers=3)).double()
    shake(net)
    folded = Folded(net)
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    for _ in range(2):
        model = folded.refresh()
        assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == KEPT.get(name, 0)
        require_equal(net, model, images)
        shake(net)


def test_it_is_frozen_in_evaluation_mode_and_as_the_network_in_memory():
    net = network()
    folded = Folded(net).refresh()
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    strides = {name: parameter.stride() for name, parameter in net.named_parameters()}
    shared = [name for name, parameter in folded.named_parameters() if name in strides and parameter.dim() == 4]
    assert len(shared) > 40
    assert [name for name in shared if folded.get_parameter(name).stride() != strides[name]] == []


@pytest.mark.parametrize("architecture", [GENOTYPE, RESNET])
def test_the_network_itself_is_not_touched(architecture):
    net = network(architecture)
    net.head.requires_grad_(False)
    net.stem.eval() if architecture == GENOTYPE else net.features.eval()

    def snapshot():
        flags = [module.training for module in net.modules()], [p.requires_grad for p in net.parameters()]
        return flags, {name: tensor.tolist() for name, tensor in net.state_dict().items()}

    before = snapshot()
    folded = Folded(net).refresh()
    folded(torch.rand(2, 3, 9, 9, dtype=torch.float64))
    assert snapshot() == before
    mine = {tensor.data_ptr() for tensor in net.state_dict().values()}
    assert not mine & {tensor.data_ptr() for tensor in folded.state_dict().values()}


def test_in_the_plain_form_attacks_are_given_the_network_itself(monkeypatch):
    net = network()
    assert attackable(net)() is not net
    monkeypatch.setenv("ARNAS_FORM", "plain")
    assert attackable(net)() is net
