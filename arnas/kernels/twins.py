"""What the kernels compute, in torch: to be read first, and used where there is no Triton."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from arnas import runtime

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
    """By the statistics of the batch, or of each of its groups."""
    if runtime.groups() > 1 or (runtime.fast() and _sums_share_lines(x)):
        return _BatchNorm.apply(x, gamma, beta, runtime.groups())  # type: ignore[no-any-return]
    return functional.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)


def _sums_share_lines(x: Tensor) -> bool:
    """Whether torch's backward pass keeps the sums of two threads in one cache line, where they wait for each other.

    With 8 channels of 32 x 32 pixels two threads took 1.5 ms, one 0.3 ms (channels_last, two x86 cores).
    """
    last = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    return last and x.shape[1] * x.element_size() % 64 != 0


class _BatchNorm(torch.autograd.Function):
    """In groups, and back in one thread where two would wait for each other."""

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
        with _one_thread() if _sums_share_lines(x) else nullcontext():
            found = [
                torch.ops.aten.native_batch_norm_backward(dy, part, gamma, None, None, *moments, True, EPS, wanted)
                for dy, part, *moments in parts
            ]
        if groups == 1:
            return *found[0], None
        of_x, of_gamma, of_beta = zip(*found, strict=True)
        return (
            torch.cat(of_x) if wanted[0] else None,
            functools.reduce(torch.add, of_gamma) if wanted[1] else None,
            functools.reduce(torch.add, of_beta) if wanted[2] else None,
            None,
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
