import itertools
import json

import pytest
import torch

from arnas.errors import InvalidInput
from arnas.space import genotype
from arnas.space.layout import Layout
from arnas.space.network import build, describe
from arnas.space.operations import OPERATIONS
from arnas.space.supernet import Supernet


def description(layout="A1 D2 R2", **changes):
    cells = genotype.load("arnas-cifar10")[0].to_json()
    return {
        "architecture": "genotype",
        "cells": cells,
        "layout": layout,
        "channels": 2,
        "classes": 5,
        "channels_in": 3,
        "auxiliary": False,
        "drop_path": 0.0,
    } | changes


@pytest.mark.parametrize(("operation", "stride", "affine"), [*itertools.product(OPERATIONS, (1, 2), (True, False))])
def test_every_operation_keeps_channels_and_divides_resolution_rounding_up(operation, stride, affine):
    for side in (7, 8):
        output = OPERATIONS[operation](4, stride, affine)(torch.rand(2, 4, side, side))
        assert output.shape == (2, 4, -(-side // stride), -(-side // stride))


def test_cells_of_a_kind_that_was_not_searched_are_refused(tmp_path):
    found, _ = genotype.load("arnas-cifar10")
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps(genotype.document(found, "mine", "A1 D2", {})))
    assert describe(str(path), (3, 8, 8), 5, layout="D1 A1 D2")["layout"] == "D1 A1 D2"
    with pytest.raises(InvalidInput, match=r"has robust cells, but genotype .* was searched in A1 D2, which has none"):
        describe(str(path), (3, 8, 8), 5, layout="A1 D2 R2")


def test_a_cell_of_one_filter_is_refused():
    with pytest.raises(InvalidInput, match=r"channels 1 is too few for layout A1 D1 R1"):
        describe("arnas-cifar10", (3, 8, 8), 5, channels=1, layout="A1 D1 R1")


@pytest.mark.parametrize("layout", ["A1", "D1", "R1 D2 A2", "D1 D2 R1", "A1 A3 D2 A2 D4 R4"])
@pytest.mark.parametrize(("channels_in", "side"), [(1, 8), (3, 9), (3, 13)])
def test_networks_and_supernets_take_any_layout_and_image_size(layout, channels_in, side):
    images = torch.rand(2, channels_in, side, side)
    assert build(description(layout, channels_in=channels_in))(images).shape == (2, 5)
    assert Supernet(Layout.parse(layout), 2, 5, channels_in)(images).shape == (2, 5)


def test_the_stem_of_a_supernet_may_halve_the_resolution():
    images = torch.rand(2, 3, 64, 64)
    seen = []
    supernet = Supernet(Layout.parse("A1"), 2, 5, stem_stride=2)
    supernet.stem.register_forward_hook(lambda *call: seen.append(call[2].shape))
    assert supernet(images).shape == (2, 5)
    assert seen == [(2, 6, 32, 32)]


def test_an_edge_that_is_sure_computes_its_operation_alone():
    edge = Supernet(Layout.parse("A1"), 4, 3).cells[0].edges[0]
    state = torch.rand(2, 4, 8, 8)
    for index, operation in enumerate(edge.operations):
        assert torch.equal(edge(state, torch.eye(len(OPERATIONS))[index]), operation(state))


def test_supernet_batch_norms_remember_nothing():
    supernet = Supernet(Layout.parse("A1 D2 R2"), 2, 3)
    assert not list(supernet.buffers())
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(supernet.train()(images), supernet.eval()(images))


def test_the_auxiliary_head_is_for_training_only():
    network = build(description(auxiliary=True))
    images = torch.rand(4, 3, 8, 8)
    assert network.train().with_auxiliary(images)[1].shape == (4, 5)
    assert network.eval().with_auxiliary(images)[1] is None


def test_drop_path_changes_training_and_nothing_else():
    torch.manual_seed(0)
    network, images = build(description(drop_path=0.9)), torch.rand(4, 3, 8, 8)
    twice = [network.train()(images) for _ in range(2)]
    assert not torch.equal(*twice)
    plain = build(description())
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(images), plain.eval()(images))


def test_drop_path_keeps_the_expectation():
    network = build(description("A1 A1", drop_path=0.8)).train()
    cell, states = network.cells[1], [torch.ones(20_000, 2, 1, 1)] * 2
    index = next(i for i, operation in enumerate(cell.operations) if not isinstance(operation, torch.nn.Identity))
    cell.operations[index], cell.sources[index] = torch.nn.ReLU(), 0
    torch.manual_seed(0)
    assert cell._edge(states, index).mean().item() == pytest.approx(1, abs=0.03)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(InvalidInput, match="'wrn-28'; near it are wrn-28-10"):
        build(description(architecture="wrn-28"))
