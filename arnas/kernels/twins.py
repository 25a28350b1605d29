"""What the kernels compute, in torch: to be read first, and used where there is no Triton."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

EPS = 1e-5  # of all batch norms; torch's default


def relu_depthwise(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    return functional.conv2d(functional.relu(x), weight, None, stride, padding, dilation, weight.shape[0])


def norm_relu_depthwise(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, weight: Tensor, stride: int, dilation: int
) -> Tensor:
    return relu_depthwise(batch_norm(x, gamma, beta), weight, stride, dilation)


def combine(total: Tensor | None, plain: Sequence[Tensor], convolved: Sequence[Tensor], strengths: Tensor) -> Tensor:
    """The strength of a convolution is the scale of its last batch norm."""
    terms = [] if total is None else [total]
    terms += [strength * y for strength, y in zip(strengths, plain, strict=False)]
    terms += [
        batch_norm(y, strength.repeat(y.shape[1]))
        for strength, y in zip(strengths[len(plain) :], convolved, strict=True)
    ]
    return functools.reduce(torch.add, terms)


def batch_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    """By the statistics of the batch."""
    return functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)


def gradients(
    twin: Callable[..., Tensor], inputs: Sequence[Any], needed: Sequence[bool], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of a twin's inputs, as functions of inputs and gradient that torch can differentiate again."""
    with torch.enable_grad():
        # inputs may depend on each other; as views, each has a gradient of its own
        views = [value.view_as(value) if isinstance(value, Tensor) else value for value in inputs]
        wanted = [view for view, need in zip(views, needed, strict=True) if need]
        found = iter(torch.autograd.grad(twin(*views), wanted, gradient, create_graph=True))
    return tuple(next(found) if need else None for need in needed)
