"""Every kernel against torch, in double precision, through Triton's interpreter.

Run by test_kernels.py in a process of its own, since TRITON_INTERPRET=1 is for the whole process.
"""

import copy
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from arnas import kernels, runtime
from arnas.kernels import depthwise, edge, pointwise, twins
from arnas.kernels.norm import statistics
from arnas.space.folding import Folded
from arnas.space.layout import NODES, Layout
from arnas.space.network import build
from arnas.space.operations import OPERATIONS
from arnas.space.supernet import Supernet
from arnas.training import distributed

assert os.environ.get("TRITON_INTERPRET") == "1"

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
geometry = {"kernel": st.sampled_from([3, 5]), "stride": st.sampled_from([1, 2]), "dilation": st.sampled_from([1, 2])}
layouts = st.sampled_from(["contiguous", "channels_last", "a slice"])
few = settings(max_examples=12)


def random(*shape, layout="contiguous"):
    """Normal numbers, some of which are zero, which have to be differentiated."""
    batch, channels, *size = shape
    x = torch.randn(batch, 2 * channels, *size, dtype=torch.float64)[:, :channels]
    x = x * (torch.rand(x.shape) < 0.9)
    if layout != "a slice":
        memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        x = x.contiguous(memory_format=memory_format)
    return x.requires_grad_()


def vector(size):
    return torch.randn(size, dtype=torch.float64, requires_grad=True)


def require_equal(found, expected, wanted, layout="contiguous"):
    """Outputs and all gradients, to 1e-12 of their size."""
    direction = random(*expected.shape, layout=layout).detach()
    pairs = [(found, expected)]
    pairs += zip(*(torch.autograd.grad(y, wanted, direction) for y in (found, expected)), strict=True)
    for mine, reference in pairs:
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-12 * max(1.0, reference.abs().max().item()))


@few
@given(shape=shapes, layout=layouts, **geometry)
def test_relu_and_depthwise_convolution_are_torchs(shape, layout, kernel, stride, dilation):
    x, weight = random(*shape, layout=layout), random(shape[1], 1, kernel, kernel)
    expected = twins.relu_depthwise(x, weight, stride, dilation)
    require_equal(depthwise.relu_depthwise(x, weight, stride, dilation), expected, [x, weight], layout)


@few
@given(shape=shapes, layout=layouts, affine=st.booleans(), **geometry)
def test_with_a_batch_norm_before_them_too(shape, layout, affine, kernel, stride, dilation):
    shape = (shape[0] + 1, *shape[1:])  # a single value has no variance
    x, weight = random(*shape, layout=layout), random(shape[1], 1, kernel, kernel)
    norm = nn.BatchNorm2d(shape[1], affine=affine, track_running_stats=affine).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    twin = copy.deepcopy(norm)
    expected = twins.norm_relu_depthwise(x, norm.weight, norm.bias, weight, stride, dilation)
    found = depthwise.norm_relu_depthwise(x, norm, weight, stride, dilation)
    require_equal(found, expected, [x, weight, *norm.parameters()], layout)
    twin(x)
    torch.testing.assert_close(norm.state_dict(), twin.state_dict(), rtol=1e-12, atol=1e-12)


@few
@given(shape=shapes, layout=layouts, first=st.booleans(), search=st.booleans())
def test_the_combination_of_an_edge_is_torchs(shape, layout, first, search):
    shape = (shape[0] + 1, *shape[1:])
    total, *operations = (random(*shape, layout=layout) for _ in range(8))
    strengths = torch.rand(7, dtype=torch.float64).requires_grad_(search)
    arguments = None if first else total, operations[:3], operations[3:], strengths
    wanted = operations + [total] * (not first) + [strengths] * search
    require_equal(edge.combine(*arguments), twins.combine(*arguments), wanted, layout)


@few
@given(shape=shapes, layout=layouts, groups=st.integers(2, 3), **geometry)
def test_batch_norms_of_groups_do_not_see_each_other(shape, layout, groups, kernel, stride, dilation):
    shape = (groups * (shape[0] + 1), *shape[1:])
    x, weight, strengths = random(*shape, layout=layout), random(shape[1], 1, kernel, kernel), vector(7)
    norm = nn.BatchNorm2d(shape[1], track_running_stats=False).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    operations = [random(*shape, layout=layout) for _ in range(7)]
    with runtime.grouped(groups):
        convolved = depthwise.norm_relu_depthwise(x, norm, weight, stride, dilation)
        combined = edge.combine(None, operations[:3], operations[3:], strengths)
    expected = [
        twins.norm_relu_depthwise(part, norm.weight, norm.bias, weight, stride, dilation) for part in x.chunk(groups)
    ]
    require_equal(convolved, torch.cat(expected), [x, weight, *norm.parameters()], layout)
    expected = [
        twins.combine(None, parts[:3], parts[3:], strengths)
        for parts in zip(*(operation.chunk(groups) for operation in operations), strict=True)
    ]
    require_equal(combined, torch.cat(expected), [*operations, strengths], layout)


@few
@given(shape=shapes, layout=layouts, outputs=st.integers(1, 5), stride=st.sampled_from([1, 2]), biased=st.booleans())
def test_a_1x1_convolution_is_torchs(shape, layout, outputs, stride, biased):
    x, weight = random(*shape, layout=layout), random(outputs, shape[1], 1, 1)
    bias = vector(outputs) if biased else None
    expected = functional.conv2d(x, weight, bias, stride)
    require_equal(pointwise.convolve(x, weight, bias, stride), expected, [x, weight] + [bias] * biased, layout)


def test_sizes_beyond_one_program_are_summed_over_all_of_them():
    x, weight = random(3, 2, 31, 33), random(2, 1, 5, 5)
    gamma, beta = vector(2), vector(2)
    expected = twins.norm_relu_depthwise(x, gamma, beta, weight, 2, 1)
    found, _ = depthwise._NormReLUDepthwise.apply(1, x, gamma, beta, weight, 2, 1)
    require_equal(found, expected, [x, gamma, beta, weight])
    operations, strengths = [random(2, 2, 31, 33) for _ in range(7)], vector(7)
    found, expected = (form.combine(None, operations[:3], operations[3:], strengths) for form in (edge, twins))
    require_equal(found, expected, [*operations, strengths])


def test_each_can_be_differentiated_twice_as_exact_hypergradients_need():
    x, weight, gamma, beta = random(2, 2, 3, 3), random(2, 1, 3, 3), vector(2), vector(2)
    operations, strengths = [random(2, 1, 2, 2) for _ in range(7)], vector(7)
    for function, values in [
        (lambda x, weight: depthwise.relu_depthwise(x, weight, 2, 1), (x, weight)),
        (lambda *inputs: depthwise._NormReLUDepthwise.apply(1, *inputs, 1, 2)[0], (x + 0.1, gamma, beta, weight)),
        (lambda a, *y: edge.combine(y[0], y[:3], y[3:], a), (strengths, *operations)),
        (lambda x, weight, bias: pointwise.convolve(x, weight, bias, 2), (x, random(3, 2, 1, 1), vector(3))),
    ]:
        inputs = tuple(value + 0.01 for value in values)  # away from the kink of the ReLU
        assert gradcheck(function, inputs, fast_mode=True)
        assert gradgradcheck(function, inputs, fast_mode=True)


def test_a_mean_far_from_zero_does_not_spoil_the_variance():
    x = torch.randn(2, 3, 20, 20) + 1000
    mean, variance, rstd = statistics(x)[0].double()
    expected, centre = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, centre, rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(rstd, (expected + 1e-5).rsqrt(), rtol=1e-4, atol=0)


def test_what_is_not_a_number_stays_so_that_a_diverged_run_is_noticed():
    x = torch.ones(1, 1, 4, 4)
    x[0, 0, 0, 0] = torch.nan
    assert depthwise.relu_depthwise(x, torch.ones(1, 1, 3, 3), 1, 1).isnan().sum() == 4


def test_a_norm_over_several_processes_computes_its_statistics_itself():
    class OfAll(distributed.BatchNorm):
        def forward(self, images):
            return nn.functional.batch_norm(images, torch.full((2,), 3.0), torch.full((2,), 4.0))

    x, convolution = torch.rand(2, 2, 5, 5), nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False)
    norm = OfAll(2)
    torch.testing.assert_close(kernels.relu_depthwise(x, convolution, norm), convolution(norm(x).relu()))


def test_kernels_are_for_the_fast_form_and_what_they_can_do(monkeypatch):
    x = torch.ones(1, 1, 2, 2)
    assert kernels.usable(x) and kernels.usable(x.double())
    assert not any(kernels.usable(y) for y in (x.half(), x.bfloat16(), x[:0]))
    monkeypatch.setenv("ARNAS_FORM", "plain")
    assert not kernels.usable(x)


def in_both_forms(monkeypatch, step):
    """What a step gives in the fast form, which must use kernels, and in the plain form, which must not."""
    results, calls = [], []
    for name in ("relu_depthwise", "norm_relu_depthwise"):
        true = getattr(depthwise, name)
        monkeypatch.setattr(depthwise, name, lambda *a, true=true, name=name: calls.append(name) or true(*a))
    for form in ("fast", "plain"):
        monkeypatch.setenv("ARNAS_FORM", form)
        before = len(calls)
        results.append(step())
        assert (len(calls) > before) == (form == "fast")
    for mine, reference in zip(*results, strict=True):
        assert (mine - reference).norm() <= 1e-12 * max(1.0, reference.norm())


def test_a_whole_supernet_has_the_same_loss_and_gradients_also_second_ones(monkeypatch):
    torch.manual_seed(0)
    network = Supernet(Layout.parse("D1"), 2, 3).double()
    images, labels = torch.rand(2, 3, 4, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 2])

    def step():
        loss = functional.cross_entropy(network(images), labels)
        wanted = [images, *network.parameters()]
        return loss, *torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)

    def hypergradient():
        loss = functional.cross_entropy(network(images), labels)
        gradients = torch.autograd.grad(loss, network.weights(), create_graph=True)
        norm = sum((gradient**2).sum() for gradient in gradients)
        wanted = [images, *network.architecture.values()]
        return torch.autograd.grad(norm, wanted, allow_unused=True, materialize_grads=True)

    in_both_forms(monkeypatch, step)
    in_both_forms(monkeypatch, hypergradient)


@pytest.mark.parametrize("folded", [False, True])
def test_a_whole_derived_network_has_the_same_loss_and_gradients(monkeypatch, folded):
    torch.manual_seed(0)
    names = list(OPERATIONS)[3:] + list(OPERATIONS)[:3]
    node = lambda first: [[names[first % 7], 0], [names[(first + 1) % 7], 1]]  # noqa: E731
    cells = {kind: [node(2 * index) for index in range(NODES)] for kind in ("accurate", "reduce", "robust")}
    description = {"architecture": "genotype", "cells": cells, "layout": "A1 D1", "auxiliary": False}
    description |= {"drop_path": 0.0, "channels": 3, "classes": 3, "channels_in": 3}
    network = build(description).double()
    network = Folded(network).refresh() if folded else network.train()
    images, labels = torch.rand(2, 3, 5, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 2])
    state = copy.deepcopy(network.state_dict())

    def step():
        network.load_state_dict(state)
        loss = functional.cross_entropy(network(images), labels)
        wanted = [images, *(parameter for parameter in network.parameters() if parameter.requires_grad)]
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        return loss, *gradients, *(buffer.double() for buffer in network.buffers())

    in_both_forms(monkeypatch, step)
