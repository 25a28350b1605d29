"""ReLU and depthwise convolution in one pass over memory; before them a batch norm, if there is one.

Computes y = depthwise(relu(x), weight) from x [N, C, H, W] and weight [C, 1, K, K], K = 3 or 5, stride and dilation 1
or 2, the padding such that y is [N, C, H / stride, W / stride], rounded up; with a batch norm relu(norm(x)), norm(x)
being never written, and its statistics those of each of G groups of samples. A program computes 512 pixels of one
channel in one group; neighbours find their common inputs in the cache.

Bytes, where X and Y are those of x and y:
    forward          X + Y; with a batch norm 2 X + Y
    input gradient   2 X + Y (x gives the ReLU's mask); with a batch norm 5 X + Y
    weight gradient  X + Y, in up to 1024 programs whose sums are added in a fixed order: no run differs from the next

Measured (H100, torch 2.11, prototype, search step with C=24, L=8, batch 32): forward 20 us a launch and with a batch
norm 47 us, input gradient 45 and 50 us, weight gradient 44 and 165 us; a launch took several convolutions there. The
share of the bandwidth: not measured in this layout; in channels_last, with four output rows a program, 2.7 TB/s.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from arnas import runtime
from arnas.kernels import twins
from arnas.kernels.norm import statistics

PIXELS = 512  # of a program
WEIGHT_PIXELS = 256  # at a time, of a program that sums all taps of the kernel


@triton.jit
def _norm(c, group, C, table, gamma, beta):
    """Mean, scale and shift of a channel in a group; a table of None stands for no norm."""
    mean, scale, shift = 0.0, 1.0, 0.0
    if table is not None:
        table += group * 3 * C + c
        mean, scale = tl.load(table), tl.load(table + 2 * C)
    if gamma is not None:
        scale *= tl.load(gamma + c)
    if beta is not None:
        shift = tl.load(beta + c)
    return mean, scale, shift


@triton.jit
def _relu(x):
    return tl.where(x <= 0, 0.0, x)  # not the maximum, which would hide that x is not a number


@triton.jit
def _forward(
    x, table, gamma, beta, weight, y, C, SIZE,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    K: tl.constexpr, S: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1)
    group = tl.program_id(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image, pixel = (group * SIZE + n) // (OH * OW), n % (OH * OW)
    plane = image * C + c
    mean, scale, shift = _norm(c, group, C, table, gamma, beta)
    total = tl.zeros([BLOCK], x.dtype.element_ty)
    for i in tl.static_range(K):
        for j in tl.static_range(K):
            h = pixel // OW * S + (i - K // 2) * D
            w = pixel % OW * S + (j - K // 2) * D
            inside = (n < SIZE) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
            value = tl.load(x + (plane * H + h) * W + w, mask=inside, other=0.0)
            if table is not None:
                value = tl.where(inside, (value - mean) * scale + shift, 0.0)
            total += _relu(value) * tl.load(weight + (c * K + i) * K + j)
    tl.store(y + plane * (OH * OW) + pixel, total, mask=n < SIZE)


@triton.jit
def _input_gradient(
    dy, x, table, gamma, beta, weight, dx, sums, C, SIZE,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    K: tl.constexpr, S: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Up to the batch norm's output; for the way through it, `sums` [G, blocks, C, 2] of the gradient, alone and times
    the normalised input."""
    c = tl.program_id(1)
    group = tl.program_id(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image, pixel = (group * SIZE + n) // (H * W), n % (H * W)
    plane = image * C + c
    total = tl.zeros([BLOCK], x.dtype.element_ty)
    for i in tl.static_range(K):
        for j in tl.static_range(K):
            h = pixel // W - (i - K // 2) * D
            w = pixel % W - (j - K // 2) * D
            inside = (n < SIZE) & (h >= 0) & (h < OH * S) & (w >= 0) & (w < OW * S)
            if S > 1:
                inside = inside & (h % S == 0) & (w % S == 0)
            value = tl.load(dy + (plane * OH + h // S) * OW + w // S, mask=inside, other=0.0)
            total += value * tl.load(weight + (c * K + i) * K + j)

    place = plane * (H * W) + pixel
    value = tl.load(x + place, mask=n < SIZE, other=0.0)
    mean, scale, shift = _norm(c, group, C, table, gamma, beta)
    total = tl.where((value - mean) * scale + shift <= 0, 0.0, total)
    tl.store(dx + place, total, mask=n < SIZE)
    if table is not None:
        total = tl.where(n < SIZE, total, 0.0)
        normalised = (value - mean) * tl.load(table + group * 3 * C + 2 * C + c)
        mine = sums + ((group * tl.num_programs(0) + tl.program_id(0)) * C + c) * 2
        tl.store(mine, tl.sum(total, 0))
        tl.store(mine + 1, tl.sum(total * normalised, 0))


@triton.jit
def _norm_gradient(dx, x, table, gamma, sums, C, SIZE, PLANE: tl.constexpr, BLOCK: tl.constexpr):
    """From the gradient of the norm's output, in place, that of its input."""
    c = tl.program_id(1)
    group = tl.program_id(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = group * C * SIZE + (n // PLANE * C + c) * PLANE + n % PLANE
    mean, scale, _ = _norm(c, group, C, table, gamma, None)
    gradient = tl.load(dx + place, mask=n < SIZE, other=0.0)
    normalised = (tl.load(x + place, mask=n < SIZE, other=0.0) - mean) * tl.load(table + group * 3 * C + 2 * C + c)
    sums += (group * C + c) * 2
    along = tl.load(sums) / SIZE + normalised * (tl.load(sums + 1) / SIZE)
    tl.store(dx + place, scale * (gradient - along), mask=n < SIZE)


@triton.jit
def _weight_gradient(
    dy, x, table, gamma, beta, sums, C, SIZE, ROUNDS,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    K: tl.constexpr, S: tl.constexpr, D: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`sums` [G, parts, C, K * K], over the pixels of each part."""
    c = tl.program_id(0)
    part = tl.program_id(1)
    group = tl.program_id(2)
    tap = tl.arange(0, TAPS)[:, None]
    mean, scale, shift = _norm(c, group, C, table, gamma, beta)
    total = tl.zeros([TAPS, BLOCK], x.dtype.element_ty)
    for i in range(ROUNDS):
        n = (part * ROUNDS + i) * BLOCK + tl.arange(0, BLOCK)[None, :]
        image, pixel = (group * SIZE + n) // (OH * OW), n % (OH * OW)
        plane = image * C + c
        gradient = tl.load(dy + plane * (OH * OW) + pixel, mask=n < SIZE, other=0.0)
        h = pixel // OW * S + (tap // K - K // 2) * D
        w = pixel % OW * S + (tap % K - K // 2) * D
        inside = (tap < K * K) & (n < SIZE) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        value = tl.load(x + (plane * H + h) * W + w, mask=inside, other=0.0)
        if table is not None:
            value = tl.where(inside, (value - mean) * scale + shift, 0.0)
        total += _relu(value) * gradient
    tap = tl.arange(0, TAPS)
    tl.store(sums + ((group * tl.num_programs(1) + part) * C + c) * K * K + tap, tl.sum(total, 1), mask=tap < K * K)


class _Shapes:
    """Arguments that the kernels have in common."""

    def __init__(self, groups: int, x: Tensor, weight: Tensor, stride: int, dilation: int):
        self.batch, self.channels, *size = x.shape
        self.groups = groups
        self.input, self.output = tuple(size), tuple(-(-length // stride) for length in size)
        self.geometry = (*self.input, *self.output, weight.shape[-1], stride, dilation)

    def pixels(self, size: tuple[int, ...]) -> int:
        """Of a channel in a group."""
        return self.batch // self.groups * size[0] * size[1]


def _convolve(x: Tensor, norm: tuple[Tensor | None, ...], weight: Tensor, shapes: _Shapes) -> Tensor:
    y = x.new_empty(shapes.batch, shapes.channels, *shapes.output)
    pixels = shapes.pixels(shapes.output)
    with torch.cuda.device_of(x):
        grid = triton.cdiv(pixels, PIXELS), shapes.channels, shapes.groups
        _forward[grid](x, *norm, weight, y, shapes.channels, pixels, *shapes.geometry, PIXELS)
    return y


def _gradient_of_input(
    dy: Tensor, x: Tensor, norm: tuple[Tensor | None, ...], weight: Tensor, shapes: _Shapes
) -> tuple[Tensor, Tensor | None]:
    """The gradient of x, and with a batch norm sums [G, C, 2]: the gradients of its shift and scale."""
    dx, sums = torch.empty_like(x), None
    pixels = shapes.pixels(shapes.input)
    grid = triton.cdiv(pixels, PIXELS), shapes.channels, shapes.groups
    parts = None if norm[0] is None else x.new_empty(shapes.groups, grid[0], shapes.channels, 2)
    with torch.cuda.device_of(x):
        _input_gradient[grid](dy, x, *norm, weight, dx, parts, shapes.channels, pixels, *shapes.geometry, PIXELS)
        if parts is not None:
            sums = parts.sum(1)
            plane = shapes.input[0] * shapes.input[1]
            _norm_gradient[grid](dx, x, *norm[:2], sums, shapes.channels, pixels, plane, PIXELS)
    return dx, sums


def _gradient_of_weight(
    dy: Tensor, x: Tensor, norm: tuple[Tensor | None, ...], weight: Tensor, shapes: _Shapes
) -> Tensor:
    pixels, taps = shapes.pixels(shapes.output), weight.shape[-1] ** 2
    blocks = triton.cdiv(pixels, WEIGHT_PIXELS)
    parts = min(blocks, max(1, 1024 // shapes.channels))
    sums = x.new_empty(shapes.groups, parts, shapes.channels, taps)
    with torch.cuda.device_of(x):
        _weight_gradient[shapes.channels, parts, shapes.groups](
            dy, x, *norm, sums, shapes.channels, pixels, triton.cdiv(blocks, parts), *shapes.geometry,
            triton.next_power_of_2(taps), WEIGHT_PIXELS, num_warps=8,
        )  # fmt: skip
    return sums.sum((0, 1)).view_as(weight)


class _ReLUDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, dilation
        x, weight = x.contiguous(), weight.contiguous()
        return _convolve(x, (None, None, None), weight, _Shapes(1, x, weight, stride, dilation))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            inputs = *ctx.saved_tensors, *ctx.geometry
            return twins.gradients(twins.relu_depthwise, inputs, ctx.needs_input_grad, gradient)
        x, weight, dy = (tensor.contiguous() for tensor in (*ctx.saved_tensors, gradient))
        shapes, norm = _Shapes(1, x, weight, *ctx.geometry), (None, None, None)
        of_x = _gradient_of_input(dy, x, norm, weight, shapes)[0] if ctx.needs_input_grad[0] else None
        of_weight = _gradient_of_weight(dy, x, norm, weight, shapes) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None, None


class _NormReLUDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        groups: int,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        weight: Tensor,
        stride: int,
        dilation: int,
    ) -> tuple[Tensor, Tensor]:
        saved = x, gamma, beta, weight
        x, weight = x.contiguous(), weight.contiguous()
        table = statistics(x, groups)
        ctx.save_for_backward(*saved, table)
        ctx.mark_non_differentiable(table)
        ctx.geometry = stride, dilation
        return _convolve(x, (table, gamma, beta), weight, _Shapes(groups, x, weight, stride, dilation)), table

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, weight, table = ctx.saved_tensors
        _, *needed = ctx.needs_input_grad
        groups = len(table)
        if torch.is_grad_enabled():
            inputs = x, gamma, beta, weight, *ctx.geometry
            with runtime.grouped(groups):
                return None, *twins.gradients(twins.norm_relu_depthwise, inputs, needed, gradient)
        x, weight, dy = x.contiguous(), weight.contiguous(), gradient.contiguous()
        shapes, norm = _Shapes(groups, x, weight, *ctx.geometry), (table, gamma, beta)
        of_x = of_gamma = of_beta = None
        if any(needed[:3]):
            of_x, sums = _gradient_of_input(dy, x, norm, weight, shapes)
            assert sums is not None
            of_beta, of_gamma = (sums[..., index].sum(0) if needed[2 - index] else None for index in (0, 1))
        of_weight = _gradient_of_weight(dy, x, norm, weight, shapes) if needed[3] else None
        return None, of_x, of_gamma, of_beta, of_weight, None, None


def relu_depthwise(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    return _ReLUDepthwise.apply(x, weight, stride, dilation)  # type: ignore[no-any-return]


def norm_relu_depthwise(x: Tensor, norm: nn.BatchNorm2d, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """With a batch norm by the statistics of the batch, which go into its running statistics, or of each of its groups
    if it keeps none."""
    groups = runtime.groups() if norm.running_mean is None else 1
    y, table = _NormReLUDepthwise.apply(groups, x, norm.weight, norm.bias, weight, stride, dilation)
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        size = x.numel() // x.shape[1]
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(table[0, 0], norm.momentum or 0.0)
        norm.running_var.lerp_(table[0, 1] * (size / (size - 1)), norm.momentum or 0.0)
    return y  # type: ignore[no-any-return]
