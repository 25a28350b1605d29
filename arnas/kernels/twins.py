"""What the kernels compute, in torch: to be read first, and the way to second derivatives; and all batch norms."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from arnas import runtime

EPS = 1e-5  # of all batch norms; torch's default


def relu_depthwise(x: Tensor, stride: int, dilation: int, *weights: Tensor) -> Tensor:
    """Of x [N, C, H, W], one after the other by every set of every weights [E, C, K, K]."""
    x = functional.relu(x)
    return torch.cat([_depthwise(x, one, stride, dilation) for stack in weights for one in stack])


def norm_relu_depthwise(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, stride: int, dilation: int, *weights: Tensor
) -> Tensor:
    """The same of a batch norm of x, of which each set has a part of its own."""
    sets = [one for stack in weights for one in stack]
    parts = (functional.relu(batch_norm(part, gamma, beta)) for part in x.chunk(len(sets)))
    return torch.cat([_depthwise(part, one, stride, dilation) for part, one in zip(parts, sets, strict=True)])


def _depthwise(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    return functional.conv2d(x, weight.unsqueeze(1), None, stride, padding, dilation, len(weight))


def combine(
    total: Tensor | None,
    strengths: Tensor,
    max_pooled: Tensor,
    avg_pooled: Tensor,
    skip: Tensor,
    separable: Tensor,
    dilated: Tensor,
) -> Tensor:
    """The seven operations of the E edges that leave a source, weighted and added to what other edges gave.

    Args:
        total: The sums of the edges before, [E * N, C, H, W], or None.
        strengths: How much each operation counts, [E, 7], in the order of the following.
        max_pooled, avg_pooled: [N, C, H, W], before their batch norm.
        skip: [N, C, H, W], or of each edge [E * N, C, H, W].
        separable, dilated: [2 * E * N, C, H, W], before their last batch norm: all edges' 3x3, then all edges' 5x5.
    """
    edges = len(strengths)
    skips = skip.chunk(edges) if len(skip) > len(max_pooled) else [skip] * edges
    pools = [batch_norm(max_pooled), batch_norm(avg_pooled)]
    convolved = [batch_norm(y) for y in (*separable.chunk(2 * edges), *dilated.chunk(2 * edges))]
    found = [
        sum(strength * y for strength, y in zip(strengths[e], [*pools, skips[e], *convolved[e::edges]], strict=True))
        for e in range(edges)
    ]
    return torch.cat(found) if total is None else total + torch.cat(found)


def batch_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    """By the statistics of the batch, or of each of its groups."""
    if runtime.groups() > 1:
        return _GroupedNorm.apply(x, gamma, beta, runtime.groups())  # type: ignore[no-any-return]
    return functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)


class _GroupedNorm(torch.autograd.Function):
    """Groups read and write their parts of common tensors, which need not be put together."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor | None, beta: Tensor | None, groups: int) -> Tensor:
        y, saved = torch.empty_like(x), []
        for part, out in zip(x.chunk(groups), y.chunk(groups), strict=True):
            saved += [x.new_empty(x.shape[1]) for _ in range(2)]  # mean, and reciprocal of the deviation
            torch.native_batch_norm(part, gamma, beta, None, None, True, 0.0, EPS, out=(out, *saved[-2:]))
        ctx.save_for_backward(x, gamma, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, *saved = ctx.saved_tensors
        groups, wanted = len(saved) // 2, list(ctx.needs_input_grad[:3])
        parts = zip(gradient.chunk(groups), x.chunk(groups), saved[::2], saved[1::2], strict=True)
        of_x, of_gamma, of_beta = zip(
            *(
                torch.ops.aten.native_batch_norm_backward(dy, part, gamma, None, None, *moments, True, EPS, wanted)
                for dy, part, *moments in parts
            ),
            strict=True,
        )
        return (
            torch.cat(of_x) if wanted[0] else None,
            functools.reduce(torch.add, of_gamma) if wanted[1] else None,
            functools.reduce(torch.add, of_beta) if wanted[2] else None,
            None,
        )


def gradients(
    twin: Callable[..., Tensor], inputs: Sequence[Any], needed: Sequence[bool], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of a twin's inputs, as functions of inputs and gradient that torch can differentiate again."""
    if not any(needed):
        return (None,) * len(inputs)
    with torch.enable_grad():
        # inputs may depend on each other; as views, each has a gradient of its own
        views = [value.view_as(value) if isinstance(value, Tensor) else value for value in inputs]
        wanted = [view for view, need in zip(views, needed, strict=True) if need]
        found = iter(torch.autograd.grad(twin(*views), wanted, gradient, create_graph=True))
    return tuple(next(found) if need else None for need in needed)
