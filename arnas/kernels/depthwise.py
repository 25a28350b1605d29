"""ReLU and depthwise convolution in one pass over memory; before them a batch norm, if there is one.

Computes y = depthwise(relu(x), weight) with K = 3 or 5, stride and dilation 1 or 2, the padding such that H and W are
divided by the stride, rounded up; with a batch norm relu(norm(x)), norm(x) being never written. It does so for stacks:
weights are [E, C, K, K], one set for each of E edges, in sequences of J kernel sizes, and y is [J * E * N, C, H, W].
Without a norm x is [N, C, H, W], the same for all sets; with one it is [J * E * N, C, H, W], each set has its own, and
statistics are those of each of G groups of a set's samples. A network without stacks has J = E = 1.

A program computes 512 pixels of one channel in one group; neighbours find their common inputs in the cache.

Bytes of one of the J launches, where X and Y are those of its x and y:
    forward          X + Y; with a batch norm 2 X + Y
    input gradient   2 X + Y (x gives the ReLU's mask); with a batch norm 5 X + Y; without, all but the first read X
                     once more
    weight gradient  X + Y, in up to 1024 programs for each group of each set, whose sums are added in a fixed order: no
                     run differs from the next
where an x that all sets read comes from the cache after the first.

Measured (H100, torch 2.11, prototype, search step with C=24, L=8, batch 32): forward 20 us a launch and with a batch
norm 47 us, input gradient 45 and 50 us, weight gradient 44 and 165 us; a launch took both kernel sizes there. The
share of the bandwidth: not measured in this layout; in channels_last, with four output rows a program, 2.7 TB/s.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

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
def _depthwise(
    x, table, gamma, beta, weight, y, C, SIZE, IMAGES, GROUPS,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    K: tl.constexpr, S: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x has IMAGES, over and over if y has more; a set of weights is for GROUPS groups of y."""
    c = tl.program_id(1)
    group = tl.program_id(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image, pixel = (group * SIZE + n) // (OH * OW), n % (OH * OW)
    plane = image % IMAGES * C + c
    weight += (group // GROUPS * C + c) * K * K
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
            total += _relu(value) * tl.load(weight + i * K + j)
    tl.store(y + (image * C + c) * (OH * OW) + pixel, total, mask=n < SIZE)


@triton.jit
def _depthwise_input_gradient(
    dy, x, table, gamma, beta, weight, dx, sums, C, SIZE, IMAGES, GROUPS, SETS,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    K: tl.constexpr, S: tl.constexpr, D: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Up to the batch norm's output, of the SETS of dy that come from the same x; for the way through the norm, `sums`
    [groups, blocks, C, 2] of the gradient, alone and times the normalised input."""
    c = tl.program_id(1)
    group = tl.program_id(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image, pixel = (group * SIZE + n) // (H * W), n % (H * W)
    weight += (group // GROUPS * C + c) * K * K
    total = tl.zeros([BLOCK], x.dtype.element_ty)
    for r in range(SETS):
        plane = (r * IMAGES + image) * C + c
        for i in tl.static_range(K):
            for j in tl.static_range(K):
                h = pixel // W - (i - K // 2) * D
                w = pixel % W - (j - K // 2) * D
                inside = (n < SIZE) & (h >= 0) & (h < OH * S) & (w >= 0) & (w < OW * S)
                if S > 1:
                    inside = inside & (h % S == 0) & (w % S == 0)
                value = tl.load(dy + (plane * OH + h // S) * OW + w // S, mask=inside, other=0.0)
                total += value * tl.load(weight + r * C * K * K + i * K + j)

    place = (image * C + c) * (H * W) + pixel
    value = tl.load(x + place, mask=n < SIZE, other=0.0)
    mean, scale, shift = _norm(c, group, C, table, gamma, beta)
    total = tl.where((value - mean) * scale + shift <= 0, 0.0, total)
    if ADD:
        total += tl.load(dx + place, mask=n < SIZE, other=0.0)
    tl.store(dx + place, total, mask=n < SIZE)
    if table is not None:
        total = tl.where(n < SIZE, total, 0.0)
        normalised = (value - mean) * tl.load(table + group * 3 * C + 2 * C + c)
        mine = sums + ((group * tl.num_programs(0) + tl.program_id(0)) * C + c) * 2
        tl.store(mine, tl.sum(total, 0))
        tl.store(mine + 1, tl.sum(total * normalised, 0))


@triton.jit
def _norm_input_gradient(dx, x, table, gamma, sums, C, SIZE, PLANE: tl.constexpr, BLOCK: tl.constexpr):
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
def _depthwise_weight_gradient(
    dy, x, table, gamma, beta, sums, C, SIZE, IMAGES, ROUNDS,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    K: tl.constexpr, S: tl.constexpr, D: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`sums` [groups, parts, C, K * K], over the pixels of each part; x as in the forward pass."""
    c = tl.program_id(0)
    part = tl.program_id(1)
    group = tl.program_id(2)
    tap = tl.arange(0, TAPS)[:, None]
    mean, scale, shift = _norm(c, group, C, table, gamma, beta)
    total = tl.zeros([TAPS, BLOCK], x.dtype.element_ty)
    for i in range(ROUNDS):
        n = (part * ROUNDS + i) * BLOCK + tl.arange(0, BLOCK)[None, :]
        image, pixel = (group * SIZE + n) // (OH * OW), n % (OH * OW)
        gradient = tl.load(dy + (image * C + c) * (OH * OW) + pixel, mask=n < SIZE, other=0.0)
        plane = image % IMAGES * C + c
        h = pixel // OW * S + (tap // K - K // 2) * D
        w = pixel % OW * S + (tap % K - K // 2) * D
        inside = (tap < K * K) & (n < SIZE) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        value = tl.load(x + (plane * H + h) * W + w, mask=inside, other=0.0)
        if table is not None:
            value = tl.where(inside, (value - mean) * scale + shift, 0.0)
        total += _relu(value) * gradient
    tap = tl.arange(0, TAPS)
    tl.store(sums + ((group * tl.num_programs(1) + part) * C + c) * K * K + tap, tl.sum(total, 1), mask=tap < K * K)


class _Convolutions:
    """The J launches of a stack: for each its weights [E, C, K, K], and its part of x, of y, and of their gradients.

    Args:
        x: Contiguous; the same for all sets of weights, or with a part for each if there is a batch norm.
        geometry: Stride and dilation.
        norm: Statistics [J * E * G, 3, C], scale and shift, where there is one.
        groups: G.
    """

    def __init__(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        geometry: tuple[int, int],
        norm: tuple[Tensor | None, ...] = (None, None, None),
        groups: int = 1,
    ):
        self.x, self.weights, self.groups = x, [weight.contiguous() for weight in weights], groups
        self.table, *self.affine = norm
        self.kinds, self.sets, self.shared = len(weights), len(weights[0]), self.table is None
        images, self.channels, *size = x.shape
        self.images = images if self.shared else images // self.kinds  # of x, in one launch
        self.samples = images if self.shared else self.images // self.sets  # of a set
        self.input, self.output = tuple(size), tuple(-(-length // geometry[0]) for length in size)
        self.geometry = [(*self.input, *self.output, weight.shape[-1], *geometry) for weight in weights]

    def _part(self, tensor: Tensor | None, kind: int) -> Any:
        """What a launch takes of a tensor that has a part for each."""
        return None if tensor is None else tensor.chunk(self.kinds)[kind]

    def _of_x(self, tensor: Tensor, kind: int) -> Any:
        """The same of x or its gradient, which may be one for all."""
        return tensor if self.shared else self._part(tensor, kind)

    def convolve(self) -> Tensor:
        y = self.x.new_empty(self.kinds * self.sets * self.samples, self.channels, *self.output)
        pixels = self.samples // self.groups * self.output[0] * self.output[1]
        grid = triton.cdiv(pixels, PIXELS), self.channels, self.sets * self.groups
        with torch.cuda.device_of(y):
            for kind, weight in enumerate(self.weights):
                _depthwise[grid](
                    self._of_x(self.x, kind), self._part(self.table, kind), *self.affine, weight, self._part(y, kind),
                    self.channels, pixels, self.images, self.groups, *self.geometry[kind], PIXELS, num_warps=8,
                )  # fmt: skip
        return y

    def gradient_of_x(self, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradient of x, and with a batch norm sums [J * E * G, C, 2]: the gradients of its shift and scale."""
        dx, sums = torch.empty_like(self.x), None
        groups = 1 if self.shared else self.sets * self.groups  # of x, in one launch
        plane = self.input[0] * self.input[1]
        pixels = self.images // groups * plane
        blocks = triton.cdiv(pixels, PIXELS)
        parts = None if self.shared else dx.new_empty(self.kinds * groups, blocks, self.channels, 2)
        with torch.cuda.device_of(dx):
            for kind, weight in enumerate(self.weights):
                _depthwise_input_gradient[blocks, self.channels, groups](
                    self._part(dy, kind), self._of_x(self.x, kind), self._part(self.table, kind), *self.affine, weight,
                    self._of_x(dx, kind), self._part(parts, kind), self.channels, pixels, self.images, self.groups,
                    self.sets if self.shared else 1, *self.geometry[kind],
                    self.shared and kind > 0, PIXELS, num_warps=8,
                )  # fmt: skip
            if parts is not None:
                sums = parts.sum(1)
                _norm_input_gradient[blocks, self.channels, self.kinds * groups](
                    dx, self.x, self.table, self.affine[0], sums, self.channels, pixels, plane, PIXELS
                )
        return dx, sums

    def gradients_of_weights(self, dy: Tensor) -> list[Tensor]:
        pixels = self.samples // self.groups * self.output[0] * self.output[1]
        groups, blocks = self.sets * self.groups, triton.cdiv(pixels, WEIGHT_PIXELS)
        parts = min(blocks, max(1, 1024 // self.channels))
        found = []
        with torch.cuda.device_of(dy):
            for kind, weight in enumerate(self.weights):
                taps = weight.shape[-1] ** 2
                sums = dy.new_empty(groups, parts, self.channels, taps)
                _depthwise_weight_gradient[self.channels, parts, groups](
                    self._part(dy, kind), self._of_x(self.x, kind), self._part(self.table, kind), *self.affine, sums,
                    self.channels, pixels, self.images, triton.cdiv(blocks, parts), *self.geometry[kind],
                    triton.next_power_of_2(taps), WEIGHT_PIXELS, num_warps=8,
                )  # fmt: skip
                found.append(sums.view(self.sets, -1, self.channels, taps).sum(1).view_as(weight))
        return found


class _ReLUDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, dilation: int, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        ctx.geometry = stride, dilation
        return _Convolutions(x.contiguous(), weights, ctx.geometry).convolve()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return twins.gradients(twins.relu_depthwise, (x, *ctx.geometry, *weights), needed, gradient)
        convolutions, dy = _Convolutions(x.contiguous(), weights, ctx.geometry), gradient.contiguous()
        of_x = convolutions.gradient_of_x(dy)[0] if needed[0] else None
        of_weights = convolutions.gradients_of_weights(dy) if any(needed[3:]) else [None] * len(weights)
        return of_x, None, None, *of_weights


class _NormReLUDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        groups: int,
        x: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        stride: int,
        dilation: int,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        dense = x.contiguous()
        table = statistics(dense, len(weights) * len(weights[0]) * groups)
        ctx.save_for_backward(x, table, gamma, beta, *weights)
        ctx.mark_non_differentiable(table)
        ctx.set_materialize_grads(False)  # not for the table
        ctx.groups, ctx.geometry = groups, (stride, dilation)
        return _Convolutions(dense, weights, ctx.geometry, (table, gamma, beta), groups).convolve(), table

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        x, table, gamma, beta, *weights = ctx.saved_tensors
        _, *needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            inputs = x, gamma, beta, *ctx.geometry, *weights
            with runtime.grouped(ctx.groups):
                return None, *twins.gradients(twins.norm_relu_depthwise, inputs, needed, gradient)
        norm, dy = (table, gamma, beta), gradient.contiguous()
        convolutions = _Convolutions(x.contiguous(), weights, ctx.geometry, norm, ctx.groups)
        of_x = of_gamma = of_beta = None
        if any(needed[:3]):
            of_x, sums = convolutions.gradient_of_x(dy)
            assert sums is not None
            of_beta, of_gamma = (sums[..., index].sum(0) if needed[2 - index] else None for index in (0, 1))
        of_weights = convolutions.gradients_of_weights(dy) if any(needed[5:]) else [None] * len(weights)
        return None, of_x, of_gamma, of_beta, None, None, *of_weights


def relu_depthwise(x: Tensor, weights: Sequence[Tensor], stride: int, dilation: int) -> Tensor:
    """Of x [N, C, H, W] and J weights [E, C, K, K]: [J * E * N, C, H, W], first those of the first weights."""
    return _ReLUDepthwise.apply(x, stride, dilation, *weights)  # type: ignore[no-any-return]


def norm_relu_depthwise(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    weights: Sequence[Tensor],
    stride: int,
    dilation: int,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """The same of a batch norm of x [J * E * N, C, H, W], with scale and shift [C] or None; and its statistics, as of
    `arnas.kernels.norm.statistics`, of each of the `groups` of a set."""
    return _NormReLUDepthwise.apply(groups, x, gamma, beta, stride, dilation, *weights)  # type: ignore[no-any-return]
