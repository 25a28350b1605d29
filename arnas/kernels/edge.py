"""The seven operations of a supernet's edge, weighted and added up in one pass over memory.

Computes out = total + sum_j s_j * plain_j + sum_i s_i * (y_i - mean_i) * rstd_i: three operations as they are (max
pool, average pool, skip connection) and four convolutions with their last batch norm; all are [N, C, H, W], s is [7],
and the total of the edges before is optional. Statistics are those of each of G groups of samples. A program computes
1024 pixels of one channel in one group.

Bytes, in units of one of the tensors:
    forward   13: the statistics read 4, this reads 8 and writes 1
    backward  20: sums over each channel read 5, the gradients read 5 and write 7, and 3 more for the strengths

Measured (H100, torch 2.11, prototype with the channel dimension first, which took all edges of a source at once): sums
28 us, gradients 23 us a launch; the forward pass and the share of the bandwidth were not measured.
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

PIXELS = 1024  # of a program


@triton.jit
def _forward(total, plain, convolved, tables, strengths, out, C, SIZE, PLANE: tl.constexpr, BLOCK: tl.constexpr):
    c = tl.program_id(1)
    group = tl.program_id(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = group * C * SIZE + (n // PLANE * C + c) * PLANE + n % PLANE
    result = tl.zeros([BLOCK], out.dtype.element_ty)
    if total is not None:
        result += tl.load(total + place, mask=n < SIZE, other=0.0)
    for j in tl.static_range(3):
        result += tl.load(strengths + j) * tl.load(plain[j] + place, mask=n < SIZE, other=0.0)
    for i in tl.static_range(4):
        mean, rstd = tl.load(tables[i] + group * 3 * C + c), tl.load(tables[i] + group * 3 * C + 2 * C + c)
        value = tl.load(convolved[i] + place, mask=n < SIZE, other=0.0)
        result += tl.load(strengths + 3 + i) * rstd * (value - mean)
    tl.store(out + place, result, mask=n < SIZE)


@triton.jit
def _sums(
    gradient, plain, convolved, tables, sums, C, SIZE, ROUNDS,
    PLANE: tl.constexpr, STRENGTHS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`sums` [G, parts, 8, C] of the gradient: times each of the seven operations, and alone."""
    c = tl.program_id(0)
    part = tl.program_id(1)
    group = tl.program_id(2)
    row = group * 3 * C + c  # of the tables
    zero = tl.zeros([BLOCK], gradient.dtype.element_ty)
    alone = zero
    of_max, of_avg, of_skip = zero, zero, zero
    of_0, of_1, of_2, of_3 = zero, zero, zero, zero
    for i in range(ROUNDS):
        n = (part * ROUNDS + i) * BLOCK + tl.arange(0, BLOCK)
        ok = n < SIZE
        place = group * C * SIZE + (n // PLANE * C + c) * PLANE + n % PLANE
        value = tl.load(gradient + place, mask=ok, other=0.0)
        alone += value
        if STRENGTHS:
            of_max += value * tl.load(plain[0] + place, mask=ok, other=0.0)
            of_avg += value * tl.load(plain[1] + place, mask=ok, other=0.0)
            of_skip += value * tl.load(plain[2] + place, mask=ok, other=0.0)
        of_0 += value * (tl.load(convolved[0] + place, mask=ok, other=0.0) - tl.load(tables[0] + row))
        of_1 += value * (tl.load(convolved[1] + place, mask=ok, other=0.0) - tl.load(tables[1] + row))
        of_2 += value * (tl.load(convolved[2] + place, mask=ok, other=0.0) - tl.load(tables[2] + row))
        of_3 += value * (tl.load(convolved[3] + place, mask=ok, other=0.0) - tl.load(tables[3] + row))
    mine = sums + (group * tl.num_programs(1) + part) * 8 * C + c
    tl.store(mine, tl.sum(of_max, 0))
    tl.store(mine + C, tl.sum(of_avg, 0))
    tl.store(mine + 2 * C, tl.sum(of_skip, 0))
    tl.store(mine + 3 * C, tl.sum(of_0, 0) * tl.load(tables[0] + row + 2 * C))
    tl.store(mine + 4 * C, tl.sum(of_1, 0) * tl.load(tables[1] + row + 2 * C))
    tl.store(mine + 5 * C, tl.sum(of_2, 0) * tl.load(tables[2] + row + 2 * C))
    tl.store(mine + 6 * C, tl.sum(of_3, 0) * tl.load(tables[3] + row + 2 * C))
    tl.store(mine + 7 * C, tl.sum(alone, 0))


@triton.jit
def _gradients(
    gradient, convolved, tables, strengths, sums, of_plain, of_convolved, C, SIZE,
    PLANE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(1)
    group = tl.program_id(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = group * C * SIZE + (n // PLANE * C + c) * PLANE + n % PLANE
    value = tl.load(gradient + place, mask=n < SIZE, other=0.0)
    for j in tl.static_range(3):
        tl.store(of_plain[j] + place, tl.load(strengths + j) * value, mask=n < SIZE)
    sums += group * 8 * C + c
    value -= tl.load(sums + 7 * C) / SIZE
    for i in tl.static_range(4):
        mean, rstd = tl.load(tables[i] + group * 3 * C + c), tl.load(tables[i] + group * 3 * C + 2 * C + c)
        normalised = (tl.load(convolved[i] + place, mask=n < SIZE, other=0.0) - mean) * rstd
        along = normalised * (tl.load(sums + (3 + i) * C) / SIZE)
        tl.store(of_convolved[i] + place, tl.load(strengths + 3 + i) * rstd * (value - along), mask=n < SIZE)


def _twin(strengths: Tensor, *operations: Tensor) -> Tensor:
    return twins.combine(None, operations[:3], operations[3:], strengths)


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups: int, total: Tensor | None, strengths: Tensor, *operations: Tensor) -> Tensor:
        plain, convolved = _contiguous(operations)
        tables = tuple(statistics(y, groups) for y in convolved)
        ctx.save_for_backward(strengths, *operations, *tables)
        ctx.groups = groups
        out = torch.empty_like(plain[0])
        batch, channels, height, width = out.shape
        pixels = batch // groups * height * width
        with torch.cuda.device_of(out):
            _forward[triton.cdiv(pixels, PIXELS), channels, groups](
                total if total is None else total.contiguous(), plain, convolved, tables, strengths.contiguous(), out,
                channels, pixels, height * width, PIXELS,
            )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        strengths, *operations = ctx.saved_tensors[:8]
        _, of_total, *needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            inputs = strengths, *operations
            with runtime.grouped(ctx.groups):
                return None, gradient if of_total else None, *twins.gradients(_twin, inputs, needed, gradient)

        tables, strengths, dense = ctx.saved_tensors[8:], strengths.contiguous(), gradient.contiguous()
        plain, convolved = _contiguous(operations)
        batch, channels, height, width = dense.shape
        pixels, plane = batch // ctx.groups * height * width, height * width
        blocks = triton.cdiv(pixels, PIXELS)
        parts = min(blocks, max(1, 1024 // channels))
        part_sums = dense.new_empty(ctx.groups, parts, 8, channels)
        of_plain, of_convolved = (tuple(torch.empty_like(dense) for _ in part) for part in (plain, convolved))
        with torch.cuda.device_of(dense):
            _sums[channels, parts, ctx.groups](
                dense, plain, convolved, tables, part_sums, channels, pixels, triton.cdiv(blocks, parts), plane,
                needed[0], PIXELS,
            )  # fmt: skip
            sums = part_sums.sum(1)
            _gradients[blocks, channels, ctx.groups](
                dense, convolved, tables, strengths, sums, of_plain, of_convolved, channels, pixels, plane, PIXELS
            )
        of_strengths = sums[:, :7].sum((0, 2)) if needed[0] else None
        return None, gradient if of_total else None, of_strengths, *of_plain, *of_convolved


def _contiguous(operations: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The three that are plain, and the four convolutions."""
    dense = tuple(operation.contiguous() for operation in operations)
    return dense[:3], dense[3:]


def combine(total: Tensor | None, plain: Sequence[Tensor], convolved: Sequence[Tensor], strengths: Tensor) -> Tensor:
    return _Combine.apply(runtime.groups(), total, strengths, *plain, *convolved)  # type: ignore[no-any-return]
