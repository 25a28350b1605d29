"""The weight gradient of a 1x1 convolution, its long sum in parts.

Computes dw = sum over samples of dy[n] @ x[n]^T from dy [N, O, P] and x [N, I, P], P pixels: a sum over N * P terms for
only O * I results. cuBLAS gave it to few programs and took 370 us each (H100, torch 2.11, prototype, C=24 L=8 search
step). As a batched product of one sample each, followed by their sum, it needs no copy and no Triton.

A stack of E of them, on a set of samples each or all on the same, is one such batched product in every direction; for
it torch copies the weights to [E * N, O, I], and images that are shared to [E * N, I, P].

Bytes: x and dy once, and N * O * I for the parts, and for the copies. Measured: this split is not; the prototype's,
into parts of at least 256 pixels, was part of all 1x1 products, which took 20% of the step.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)  # an attack need not keep the input
        ctx.shape, ctx.stride = x.shape, stride
        return functional.conv2d(x, weight, bias, stride)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """In functions that torch can differentiate again."""
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = conv2d_input(ctx.shape, weight, gradient, ctx.stride)
        if ctx.needs_input_grad[1]:
            seen = x[:, :, :: ctx.stride, :: ctx.stride]
            of_weight = torch.bmm(gradient.flatten(2), seen.flatten(2).transpose(1, 2)).sum(0).view_as(weight)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    return _Pointwise.apply(x, weight, bias, stride)  # type: ignore[no-any-return]


def stacked(x: Tensor, weights: Tensor, shared: bool = False) -> Tensor:
    """1x1 convolutions [E * N, O, H, W] with each of the weights [E, O, I].

    Args:
        x: [E * N, I, H, W], a part for each of them; [N, I, H, W] if it is `shared` by all.
    """
    parts = x.flatten(2).unflatten(0, (1 if shared else len(weights), -1))
    return torch.matmul(weights.unsqueeze(1), parts).flatten(0, 1).unflatten(2, x.shape[2:])  # type: ignore[no-any-return]
