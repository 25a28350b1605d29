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
from arnas.kernels import depthwise, edge, norm, pointwise, twins
from arnas.kernels.norm import statistics
from arnas.space import stacked
from arnas.space.folding import Folded
from arnas.space.layout import NODES, Layout
from arnas.space.network import build
from arnas.space.operations import OPERATIONS
from arnas.space.supernet import Supernet
from arnas.training import distributed
from benchmarks import bandwidths

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


def stacks(edges, channels, kernel, both):
    """Weights of depthwise convolutions for some edges, of one size of kernel or of both."""
    return [random(edges, channels, size, size) for size in ((3, 5) if both else (kernel,))]


def require_equal(found, expected, wanted, layout="contiguous"):
    """Outputs and all gradients, to 1e-12 of their size."""
    direction = random(*expected.shape, layout=layout).detach()
    pairs = [(found, expected)]
    pairs += zip(*(torch.autograd.grad(y, wanted, direction) for y in (found, expected)), strict=True)
    for mine, reference in pairs:
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-12 * max(1.0, reference.abs().max().item()))


@few
@given(shape=shapes, layout=layouts, edges=st.integers(1, 3), both=st.booleans(), **geometry)
def test_relu_and_depthwise_convolutions_are_torchs(shape, layout, edges, both, kernel, stride, dilation):
    x, weights = random(*shape, layout=layout), stacks(edges, shape[1], kernel, both)
    expected = twins.relu_depthwise(x, stride, dilation, *weights)
    require_equal(depthwise.relu_depthwise(x, weights, stride, dilation), expected, [x, *weights], layout)


@few
@given(shape=shapes, layout=layouts, edges=st.integers(1, 3), both=st.booleans(), groups=st.integers(1, 2), **geometry)
def test_with_a_batch_norm_before_them_too(shape, layout, edges, both, groups, kernel, stride, dilation):
    weights = stacks(edges, shape[1], kernel, both)
    samples = groups * (shape[0] + 1)  # a single value has no variance
    x = random(len(weights) * edges * samples, *shape[1:], layout=layout)
    gamma, beta = (vector(shape[1]), vector(shape[1])) if groups == 1 else (None, None)
    with runtime.grouped(groups):
        expected = twins.norm_relu_depthwise(x, gamma, beta, stride, dilation, *weights)
    found, _ = depthwise.norm_relu_depthwise(x, gamma, beta, weights, stride, dilation, groups)
    affine = [] if gamma is None else [gamma, beta]
    require_equal(found, expected, [x, *affine, *weights], layout)


@settings(max_examples=24)
@given(
    shape=shapes,
    layout=layouts,
    edges=st.integers(1, 3),
    groups=st.integers(1, 2),
    first=st.booleans(),
    search=st.booleans(),
    strided=st.booleans(),
)
def test_the_combination_of_edges_is_torchs(shape, layout, edges, groups, first, search, strided):
    shape = (groups * (shape[0] + 1), *shape[1:])
    sizes = {"total": edges, "max": 1, "avg": 1, "skip": edges if strided else 1, "sep": 2 * edges, "dil": 2 * edges}
    total, *operations = (random(size * shape[0], *shape[1:], layout=layout) for size in sizes.values())
    strengths = torch.rand(edges, 7, dtype=torch.float64).requires_grad_(search)
    arguments = None if first else total, strengths, *operations
    wanted = operations + [total] * (not first) + [strengths] * search
    with runtime.grouped(groups):
        require_equal(edge.combine(*arguments), twins.combine(*arguments), wanted, layout)


def test_the_twins_of_stacks_are_edges_one_by_one():
    """What they are compared with, against modules, samples of both groups apart."""
    x, weights = random(4, 2, 5, 5), stacks(3, 2, 3, True)
    found = twins.relu_depthwise(x, 2, 1, *weights).unflatten(0, (2, 3, 4))
    for size, stack in enumerate(weights):
        for number, weight in enumerate(stack):
            convolution = nn.Conv2d(2, 2, 3 + 2 * size, 2, 1 + size, groups=2, bias=False).double()
            convolution.weight.data = weight.unsqueeze(1)
            torch.testing.assert_close(found[size, number], convolution(x.relu()), rtol=1e-12, atol=1e-12)
    max_pooled, avg_pooled, skip = (random(4, 2, 5, 5) for _ in range(3))
    separable, dilated = (random(2 * 3 * 4, 2, 5, 5) for _ in range(2))
    strengths, norm = torch.rand(3, 7, dtype=torch.float64), nn.BatchNorm2d(2, affine=False).double()
    with runtime.grouped(2):
        found = twins.combine(None, strengths, max_pooled, avg_pooled, skip, separable, dilated)
    for number, (mine, strength) in enumerate(zip(found.chunk(3), strengths, strict=True)):
        convolved = [y.chunk(6)[place] for y in (separable, dilated) for place in (number, 3 + number)]
        for group in range(2):
            terms = [norm(max_pooled.chunk(2)[group]), norm(avg_pooled.chunk(2)[group]), skip.chunk(2)[group]]
            terms += [norm(y.chunk(2)[group]) for y in convolved]
            expected = sum(s * term for s, term in zip(strength, terms, strict=True))
            torch.testing.assert_close(mine.chunk(2)[group], expected, rtol=1e-12, atol=1e-12)


@few
@given(shape=shapes, layout=layouts, kernel=geometry["kernel"], stride=geometry["stride"], affine=st.booleans())
def test_a_layer_and_the_norm_before_it_leave_the_same_traces(shape, layout, kernel, stride, affine):
    shape = (shape[0] + 1, *shape[1:])
    x, channels = random(*shape, layout=layout), shape[1]
    convolution = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False).double()
    norm = nn.BatchNorm2d(channels, affine=affine, track_running_stats=affine).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    twin = copy.deepcopy(norm)
    expected = convolution(twin(x).relu())
    found = kernels.relu_depthwise(x, convolution, norm)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * max(1.0, expected.abs().max().item()))
    torch.testing.assert_close(norm.state_dict(), twin.state_dict(), rtol=1e-12, atol=1e-12)


@few
@given(shape=shapes, layout=layouts, outputs=st.integers(1, 5), stride=st.sampled_from([1, 2]), biased=st.booleans())
def test_a_1x1_convolution_is_torchs(shape, layout, outputs, stride, biased):
    x, weight = random(*shape, layout=layout), random(outputs, shape[1], 1, 1)
    bias = vector(outputs) if biased else None
    expected = functional.conv2d(x, weight, bias, stride)
    require_equal(pointwise.convolve(x, weight, bias, stride), expected, [x, weight] + [bias] * biased, layout)


@few
@given(shape=shapes, layout=layouts, outputs=st.integers(1, 5), edges=st.integers(1, 3), shared=st.booleans())
def test_so_is_a_stack_of_them(shape, layout, outputs, edges, shared):
    x = random((1 if shared else edges) * shape[0], *shape[1:], layout=layout)
    weights = random(edges, outputs, shape[1], 1)
    parts = [x] * edges if shared else x.chunk(edges)
    expected = [functional.conv2d(part, weight.unsqueeze(-1)) for part, weight in zip(parts, weights, strict=True)]
    found = pointwise.stacked(x, weights.squeeze(-1), shared)
    require_equal(found, torch.cat(expected), [x, weights], layout)


def test_sizes_beyond_one_program_are_summed_over_all_of_them():
    weights, gamma, beta = stacks(2, 2, 5, False), vector(2), vector(2)
    x = random(4, 2, 31, 33)
    expected = twins.norm_relu_depthwise(x, gamma, beta, 2, 1, *weights)
    found, _ = depthwise.norm_relu_depthwise(x, gamma, beta, weights, 2, 1, 1)
    require_equal(found, expected, [x, gamma, beta, *weights])
    operations, strengths = [random(size * 2, 2, 31, 33) for size in (1, 1, 2, 4, 4)], random(2, 7, 1, 1).flatten(1)
    found, expected = (form(None, strengths, *operations) for form in (edge.combine, twins.combine))
    require_equal(found, expected, [*operations, strengths])


def test_each_can_be_differentiated_twice_as_exact_hypergradients_need():
    x, gamma, beta, (weights,) = random(2, 2, 3, 3), vector(2), vector(2), stacks(2, 2, 3, False)
    operations, strengths = [random(size * 2, 1, 2, 2) for size in (1, 1, 1, 4, 4)], random(2, 7, 1, 1).flatten(1)
    apart = random(4, 2, 3, 3)
    for function, values in [
        (lambda x, weights: depthwise.relu_depthwise(x, [weights], 2, 1), (x, weights)),
        (lambda x, *affine: depthwise.norm_relu_depthwise(x, *affine[:2], affine[2:], 1, 2, 1)[0],
            (apart + 0.1, gamma, beta, weights)),
        (lambda strengths, *y: edge.combine(y[0].repeat(2, 1, 1, 1), strengths, *y), (strengths, *operations)),
        (lambda x, weight, bias: pointwise.convolve(x, weight, bias, 2), (x, random(3, 2, 1, 1), vector(3))),
        (lambda x, weights: pointwise.stacked(x, weights.flatten(2)), (x, random(2, 3, 2, 1))),
    ]:  # fmt: skip
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
    assert depthwise.relu_depthwise(x, [torch.ones(1, 1, 3, 3)], 1, 1).isnan().sum() == 4


def test_a_norm_over_several_processes_computes_its_statistics_itself():
    class OfAll(distributed.BatchNorm):
        def forward(self, images):
            return nn.functional.batch_norm(images, torch.full((2,), 3.0), torch.full((2,), 4.0))

    x, convolution = torch.rand(2, 2, 5, 5), nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False)
    norm = OfAll(2)
    torch.testing.assert_close(kernels.relu_depthwise(x, convolution, norm), convolution(norm(x).relu()))


KERNELS = {
    depthwise: ("_depthwise", "_depthwise_input_gradient", "_norm_input_gradient", "_depthwise_weight_gradient"),
    edge: ("_combine", "_combine_sums", "_combine_gradients", "_combine_shared_gradients"),
    norm: ("_statistics",),
}


def test_the_benchmark_of_bandwidths_launches_every_kernel(monkeypatch):
    launched = set()

    class Watched:
        def __init__(self, place, kernel):
            self.place, self.kernel = place, kernel

        def __getitem__(self, grid):
            launched.add(self.place)
            return self.kernel[grid]

    places = [(module, name) for module, names in KERNELS.items() for name in names]
    for module, name in places:
        monkeypatch.setattr(module, name, Watched((module, name), getattr(module, name)))
    for _, moved, call in bandwidths.calls(torch.device("cpu"), edges=2, images=2, channels=1, pixels=3):
        assert moved > 0
        call()
    assert launched == set(places)


def test_kernels_are_for_the_fast_form_and_what_they_can_do(monkeypatch):
    x = torch.ones(1, 1, 2, 2)
    assert kernels.usable(x) and kernels.usable(x.double())
    assert not any(kernels.usable(y) for y in (x.half(), x.bfloat16(), x[:0]))
    large = torch.empty(1).expand(2**28, 1, 1, 1)
    assert kernels.usable(large) and kernels.usable(large, 7) and not kernels.usable(large, stacked.COPIES)
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
    stacks, leave = [], stacked.by_samples
    monkeypatch.setattr(stacked, "by_samples", lambda edges, *given: stacks.append(len(edges)) or leave(edges, *given))

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
    assert stacks == [4, 4, 3, 2, 1]  # edges that leave each source; the plain form has none
    in_both_forms(monkeypatch, hypergradient)


def test_two_batches_pass_a_whole_supernet_as_one_and_do_not_see_each_other(monkeypatch):
    torch.manual_seed(0)
    network = Supernet(Layout.parse("D1"), 3, 3).double()
    images = torch.rand(4, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    wanted = [images, *network.parameters()]

    def gradients(logits):
        return logits, *torch.autograd.grad(logits.square().sum(), wanted, allow_unused=True, materialize_grads=True)

    with runtime.grouped(2):
        joined = gradients(network(images))
    monkeypatch.setenv("ARNAS_FORM", "plain")
    apart = gradients(torch.cat([network(half) for half in images.chunk(2)]))
    for mine, reference in zip(joined, apart, strict=True):
        assert (mine - reference).norm() <= 1e-12 * max(1.0, reference.norm())


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
