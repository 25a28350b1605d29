"""The fast form of a backward pass: what torch does slowly, done in another way with the same result.

The gradient of a convolution's input is the output's gradient, spread over the stride with zeros between, and convolved
with the kernel turned by 180 degrees (where groups have several channels, with these exchanged). On a CPU torch takes
another way: for dilated depthwise kernels 4 to 9 times as long, with stride 2 some 20 times (channels_last, on two x86
cores). On a GPU it is the weight gradient of 1x1 convolutions that takes long, see `arnas.kernels.pointwise`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from arnas import kernels, runtime
from arnas.kernels import pointwise

Pair = tuple[int, int]


class Convolution(nn.Conv2d):
    """nn.Conv2d with the faster way back where there is one; see `runtime.fast`."""

    padding: Pair  # never "same" or "valid" here

    def forward(self, x: Tensor) -> Tensor:
        if kernels.usable(x) and self.kernel_size == (1, 1):
            return pointwise.convolve(x, self.weight, self.bias, self.stride[0])
        stride = self.stride
        if x.device.type == "cpu" and self.kernel_size == (1, 1) and stride != (1, 1) and self.padding == (0, 0):
            # the pixels between go first: of strided 1x1 convolutions of few channels oneDNN's weight gradient writes
            # past its memory (channels_last, without AVX-512; github.com/uxlfoundation/oneDNN/issues/6035)
            x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
        return convolve(x, self.weight, self.bias, stride, self.padding, self.dilation, self.groups)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """functional.conv2d with the faster way back.

    Args:
        geometry: Stride, padding and dilation, a pair each, and the number of groups.
    """
    if runtime.fast() and x.device.type == "cpu" and _turns(weight, *geometry[:3]):
        return _Turning.apply(x, weight, bias, geometry)  # type: ignore[no-any-return]
    return functional.conv2d(x, weight, bias, *geometry)


def _turns(weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> bool:
    """Whether the turned kernel is the faster way: the convolution keeps the size but for the stride, and has a
    dilation where it has a stride."""
    kept = all(
        2 * pad == dilate * (kernel - 1)
        for kernel, dilate, pad in zip(weight.shape[2:], dilation, padding, strict=True)
    )
    return kept and (stride == (1, 1) or min(dilation) > 1)


class _Turning(torch.autograd.Function):
    """Under autocast both ways are bf16, as torch's own would be."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)  # an attack need not keep the input
        ctx.shape, ctx.geometry = x.shape, geometry
        return functional.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)
            of_x = functional.conv2d(_spread(gradient, stride, ctx.shape), turned, None, 1, padding, dilation, groups)
        if ctx.needs_input_grad[1]:
            of_weight = conv2d_weight(x, weight.shape, gradient, *ctx.geometry)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None


def _spread(gradient: Tensor, stride: tuple[int, int], shape: torch.Size) -> Tensor:
    """The gradient at the places of the input that its pixels belong to, zeros elsewhere."""
    if stride == (1, 1):
        return gradient
    spread = gradient.new_zeros(gradient.shape[:2] + shape[2:])
    if gradient.is_contiguous(memory_format=torch.channels_last):
        spread = spread.to(memory_format=torch.channels_last)
    spread[:, :, :: stride[0], :: stride[1]] = gradient
    return spread
