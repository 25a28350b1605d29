"""The fast form is the plain form but for rounding: float64, whole gradients, odd sizes, a batch of one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from arnas import runtime
from arnas.errors import InvalidInput
from arnas.kernels import twins
from arnas.runtime import fast
from arnas.space import gradients, stacked
from arnas.space.gradients import Convolution


def make(kernel, stride, dilation, groups, bias=False):
    """Dense (1 group), of several channels a group (2), or depthwise (6)."""
    torch.manual_seed(0)
    padding = dilation * (kernel // 2)
    return Convolution(6, 6 if groups == 6 else 4, kernel, stride, padding, dilation, groups, bias).double()


geometries = {
    "kernel": st.sampled_from([1, 3, 5]),
    "stride": st.sampled_from([1, 2]),
    "dilation": st.sampled_from([1, 2]),
    "groups": st.sampled_from([1, 2, 6]),
    "bias": st.booleans(),
}


@given(
    **geometries,
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels_last=st.booleans(),
)
def test_output_and_all_gradients_are_those_of_torch(batch, height, width, channels_last, **geometry):
    ours = make(**geometry)
    images = torch.randn(batch, 6, height, width, dtype=torch.float64)
    images = images.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    images.requires_grad_()
    output, expected = ours(images), nn.Conv2d.forward(ours, images)
    assert torch.equal(output, expected)
    direction = torch.randn_like(output)
    found, wanted = (torch.autograd.grad(y, [images, *ours.parameters()], direction) for y in (output, expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["fast", "plain"])
@pytest.mark.parametrize("channels", [1, 4, 6])
def test_the_weight_gradient_of_a_strided_1x1_convolution_of_few_channels_is_right(channels, form, monkeypatch):
    """oneDNN's own is wrong and destroys memory on some CPUs (github.com/uxlfoundation/oneDNN/issues/6035)."""
    monkeypatch.setenv("ARNAS_FORM", form)
    torch.manual_seed(0)
    ours = Convolution(channels, 8, 1, 2, bias=False).to(memory_format=torch.channels_last)
    images = torch.randn(30, channels, 16, 16).to(memory_format=torch.channels_last)
    for _ in range(10):
        found = torch.autograd.grad(ours(images).square().sum(), ours.weight)[0]
    even = images[:, :, ::2, ::2].double()
    output = torch.einsum("bchw,oc->bohw", even, ours.weight[..., 0, 0].double())
    expected = 2 * torch.einsum("bohw,bchw->oc", output, even)
    torch.testing.assert_close(found[..., 0, 0].double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_it_can_be_differentiated_twice_as_exact_hypergradients_need(stride, groups):
    ours = make(3, stride, 2, groups)
    inputs = torch.randn(2, 6, 5, 4, dtype=torch.float64, requires_grad=True), ours.weight

    def output(x, weight):
        return torch.func.functional_call(ours, {"weight": weight}, x)

    assert gradcheck(output, inputs)
    assert gradgradcheck(output, inputs)


def test_batch_norm_in_groups_can_be_differentiated_twice():
    images = torch.randn(4, 3, 3, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    scale, shift = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with runtime.grouped(2):
        assert gradcheck(twins.batch_norm, (images, scale, shift))
        assert gradgradcheck(twins.batch_norm, (images, scale, shift))


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("came", [torch.channels_last, torch.contiguous_format])
def test_a_stack_is_given_its_gradient_in_its_own_memory_format(form, came):
    x = torch.randn(2, 3, 4, 5).to(memory_format=form).requires_grad_() * 1
    found, gradient = [], torch.randn(2, 3, 4, 5).to(memory_format=came)
    stacked._with_gradient_alike(x).register_hook(found.append)
    torch.autograd.backward(x, gradient)
    assert torch.equal(found[0], gradient) and found[0].is_contiguous(memory_format=form)


def test_an_attack_keeps_no_input_for_the_way_back():
    ours = make(5, 1, 2, 6).requires_grad_(False)
    images = torch.randn(2, 6, 8, 8, dtype=torch.float64, requires_grad=True)
    assert ours(images).grad_fn.saved_tensors[0] is None


def test_the_plain_form_is_torchs_own(monkeypatch):
    monkeypatch.setattr(gradients, "_Turning", None)
    monkeypatch.setenv("ARNAS_FORM", "plain")
    make(3, 1, 1, 6)(torch.ones(1, 6, 4, 4, dtype=torch.float64))


def test_a_form_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("ARNAS_FORM", "quick")
    with pytest.raises(InvalidInput, match=r"^ARNAS_FORM is 'quick'; it is fast \(as without it\) or plain\.$"):
        fast()


@given(groups=st.integers(2, 3), size=st.integers(1, 2), channels=st.sampled_from([3, 8]), scaled=st.booleans())
def test_batch_norm_in_groups_is_that_of_each_group_alone(groups, size, channels, scaled):
    images = torch.randn(groups * size, channels, 3, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    inputs = [images.requires_grad_()]
    inputs += [torch.randn(channels, dtype=torch.float64, requires_grad=True) for _ in range(2 * scaled)]
    with runtime.grouped(groups):
        output = twins.batch_norm(*inputs)
    parts = [nn.functional.batch_norm(part, None, None, *inputs[1:], training=True) for part in images.chunk(groups)]
    expected = torch.cat(parts)
    direction = torch.randn_like(output)
    found, wanted = (torch.autograd.grad(y, inputs, direction) for y in (output, expected))
    torch.testing.assert_close((output, *found), (expected, *wanted), rtol=0, atol=1e-12)
