"""The seven operations of all edges that leave a source of the supernet, weighted and added up in one pass over memory.

For each of E edges computes out = total + s_0 * norm(max) + s_1 * norm(avg) + s_2 * skip + sum_i s_i * norm(y_i), where
norm(y) = (y - mean) * rstd: max and average pool, which all edges share, the skip connection, and four convolutions,
all [N, C, H, W]. The edges are stacked: out, total, y_i, and skip if it is not shared, are [E * N, C, H, W], and s is
[E, 7]. Statistics are those of each of G groups of an edge's samples. A program computes 1024 pixels of one channel in
one group.

Bytes, in units of one [E * N, C, H, W], without what edges share:
    forward   10: the statistics read 4, this reads 5 (total and convolutions) and writes 1
    backward  15: sums over each channel read 5, the convolutions' gradients read 5 and write 4, and those of what
              edges share read 1
and with skip connections that are not shared 11 and 17.

Measured (H100, torch 2.11, prototype with the channel dimension first): sums 28 us, gradients 23 us a launch; the
forward pass and the share of the bandwidth were not measured.
"""

import functools
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
def _mean_and_rstd(table, group, C, c):
    return tl.load(table + group * 3 * C + c), tl.load(table + group * 3 * C + 2 * C + c)


@triton.jit
def _combine(
    total, max_pool, avg_pool, skip, sep, dil, of_max, of_avg, of_sep, of_dil, strengths, out, C, SIZE, GROUPS,
    PLANE: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """of_...: tables of statistics. SHARED: the skip connection is the same for all edges."""
    c = tl.program_id(1)
    group = tl.program_id(2)
    groups = tl.num_programs(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = (n // PLANE * C + c) * PLANE + n % PLANE
    place = group * C * SIZE + within
    shared = group % GROUPS * C * SIZE + within
    strengths += group // GROUPS * 7
    result = tl.zeros([BLOCK], out.dtype.element_ty)
    if total is not None:
        result += tl.load(total + place, mask=n < SIZE, other=0.0)
    mean, rstd = _mean_and_rstd(of_max, group % GROUPS, C, c)
    result += tl.load(strengths) * rstd * (tl.load(max_pool + shared, mask=n < SIZE, other=0.0) - mean)
    mean, rstd = _mean_and_rstd(of_avg, group % GROUPS, C, c)
    result += tl.load(strengths + 1) * rstd * (tl.load(avg_pool + shared, mask=n < SIZE, other=0.0) - mean)
    result += tl.load(strengths + 2) * tl.load(skip + (shared if SHARED else place), mask=n < SIZE, other=0.0)
    for i in tl.static_range(2):
        ahead = i * groups * C * SIZE
        mean, rstd = _mean_and_rstd(of_sep, i * groups + group, C, c)
        value = tl.load(sep + ahead + place, mask=n < SIZE, other=0.0)
        result += tl.load(strengths + 3 + i) * rstd * (value - mean)
        mean, rstd = _mean_and_rstd(of_dil, i * groups + group, C, c)
        value = tl.load(dil + ahead + place, mask=n < SIZE, other=0.0)
        result += tl.load(strengths + 5 + i) * rstd * (value - mean)
    tl.store(out + place, result, mask=n < SIZE)


@triton.jit
def _combine_sums(
    gradient, max_pool, avg_pool, skip, sep, dil, of_max, of_avg, of_sep, of_dil, sums, C, SIZE, GROUPS, ROUNDS,
    PLANE: tl.constexpr, SHARED: tl.constexpr, STRENGTHS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`sums` [groups, parts, 8, C] of the gradient: times each of the seven operations, and alone."""
    c = tl.program_id(0)
    part = tl.program_id(1)
    group = tl.program_id(2)
    groups = tl.num_programs(2)
    max_mean, max_rstd = _mean_and_rstd(of_max, group % GROUPS, C, c)
    avg_mean, avg_rstd = _mean_and_rstd(of_avg, group % GROUPS, C, c)
    sep3_mean, sep3_rstd = _mean_and_rstd(of_sep, group, C, c)
    sep5_mean, sep5_rstd = _mean_and_rstd(of_sep, groups + group, C, c)
    dil3_mean, dil3_rstd = _mean_and_rstd(of_dil, group, C, c)
    dil5_mean, dil5_rstd = _mean_and_rstd(of_dil, groups + group, C, c)
    ahead = groups * C * SIZE
    zero = tl.zeros([BLOCK], gradient.dtype.element_ty)
    alone = zero
    by_max, by_avg, by_skip = zero, zero, zero
    by_sep3, by_sep5, by_dil3, by_dil5 = zero, zero, zero, zero
    for i in range(ROUNDS):
        n = (part * ROUNDS + i) * BLOCK + tl.arange(0, BLOCK)
        ok = n < SIZE
        within = (n // PLANE * C + c) * PLANE + n % PLANE
        place = group * C * SIZE + within
        shared = group % GROUPS * C * SIZE + within
        value = tl.load(gradient + place, mask=ok, other=0.0)
        alone += value
        by_max += value * (tl.load(max_pool + shared, mask=ok, other=0.0) - max_mean)
        by_avg += value * (tl.load(avg_pool + shared, mask=ok, other=0.0) - avg_mean)
        if STRENGTHS:
            by_skip += value * tl.load(skip + (shared if SHARED else place), mask=ok, other=0.0)
        by_sep3 += value * (tl.load(sep + place, mask=ok, other=0.0) - sep3_mean)
        by_sep5 += value * (tl.load(sep + ahead + place, mask=ok, other=0.0) - sep5_mean)
        by_dil3 += value * (tl.load(dil + place, mask=ok, other=0.0) - dil3_mean)
        by_dil5 += value * (tl.load(dil + ahead + place, mask=ok, other=0.0) - dil5_mean)
    mine = sums + (group * tl.num_programs(1) + part) * 8 * C + c
    tl.store(mine, tl.sum(by_max, 0) * max_rstd)
    tl.store(mine + C, tl.sum(by_avg, 0) * avg_rstd)
    tl.store(mine + 2 * C, tl.sum(by_skip, 0))
    tl.store(mine + 3 * C, tl.sum(by_sep3, 0) * sep3_rstd)
    tl.store(mine + 4 * C, tl.sum(by_sep5, 0) * sep5_rstd)
    tl.store(mine + 5 * C, tl.sum(by_dil3, 0) * dil3_rstd)
    tl.store(mine + 6 * C, tl.sum(by_dil5, 0) * dil5_rstd)
    tl.store(mine + 7 * C, tl.sum(alone, 0))


@triton.jit
def _through_norm(gradient, value, table, row, sums, along, C, c, SIZE):
    """From the gradient of a normalised channel, of which `sums` are those of the edge, that of the channel."""
    mean, rstd = _mean_and_rstd(table, row, C, c)
    gradient -= tl.load(sums + 7 * C + c) / SIZE
    return rstd * (gradient - (value - mean) * rstd * (tl.load(sums + along * C + c) / SIZE))


@triton.jit
def _combine_gradients(
    gradient, sep, dil, of_sep, of_dil, strengths, sums, d_sep, d_dil, d_skip, C, SIZE, GROUPS,
    PLANE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of what each edge has for itself: the convolutions, and the skip connection if there is a place for it."""
    c = tl.program_id(1)
    group = tl.program_id(2)
    groups = tl.num_programs(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = group * C * SIZE + (n // PLANE * C + c) * PLANE + n % PLANE
    sums += group * 8 * C
    strengths += group // GROUPS * 7
    dy = tl.load(gradient + place, mask=n < SIZE, other=0.0)
    if d_skip is not None:
        tl.store(d_skip + place, tl.load(strengths + 2) * dy, mask=n < SIZE)
    for i in tl.static_range(2):
        ahead = i * groups * C * SIZE
        value = tl.load(sep + ahead + place, mask=n < SIZE, other=0.0)
        found = _through_norm(dy, value, of_sep, i * groups + group, sums, 3 + i, C, c, SIZE)
        tl.store(d_sep + ahead + place, tl.load(strengths + 3 + i) * found, mask=n < SIZE)
        value = tl.load(dil + ahead + place, mask=n < SIZE, other=0.0)
        found = _through_norm(dy, value, of_dil, i * groups + group, sums, 5 + i, C, c, SIZE)
        tl.store(d_dil + ahead + place, tl.load(strengths + 5 + i) * found, mask=n < SIZE)


@triton.jit
def _combine_shared_gradients(
    gradient, max_pool, avg_pool, of_max, of_avg, strengths, sums, d_max, d_avg, d_skip, EDGES, C, SIZE,
    PLANE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of what all edges share, summed over them: the pools, and the skip connection if there is a place for it."""
    c = tl.program_id(1)
    group = tl.program_id(2)
    groups = tl.num_programs(2)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = (n // PLANE * C + c) * PLANE + n % PLANE
    place = group * C * SIZE + within
    max_value = tl.load(max_pool + place, mask=n < SIZE, other=0.0)
    avg_value = tl.load(avg_pool + place, mask=n < SIZE, other=0.0)
    to_max = tl.zeros([BLOCK], gradient.dtype.element_ty)
    to_avg = tl.zeros([BLOCK], gradient.dtype.element_ty)
    to_skip = tl.zeros([BLOCK], gradient.dtype.element_ty)
    for edge in range(EDGES):
        row = edge * groups + group
        dy = tl.load(gradient + row * C * SIZE + within, mask=n < SIZE, other=0.0)
        mine = sums + row * 8 * C
        to_max += tl.load(strengths + edge * 7) * _through_norm(dy, max_value, of_max, group, mine, 0, C, c, SIZE)
        to_avg += tl.load(strengths + edge * 7 + 1) * _through_norm(dy, avg_value, of_avg, group, mine, 1, C, c, SIZE)
        to_skip += tl.load(strengths + edge * 7 + 2) * dy
    tl.store(d_max + place, to_max, mask=n < SIZE)
    tl.store(d_avg + place, to_avg, mask=n < SIZE)
    if d_skip is not None:
        tl.store(d_skip + place, to_skip, mask=n < SIZE)


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups: int, total: Tensor | None, strengths: Tensor, *operations: Tensor) -> Tensor:
        dense = [operation.contiguous() for operation in operations]
        max_pooled, avg_pooled, skip, separable, dilated = dense
        edges = len(strengths)
        tables = [statistics(pooled, groups) for pooled in (max_pooled, avg_pooled)]
        tables += [statistics(convolved, 2 * edges * groups) for convolved in (separable, dilated)]
        ctx.save_for_backward(strengths, *operations, *tables)
        ctx.groups = groups
        batch, channels, height, width = max_pooled.shape
        out = max_pooled.new_empty(edges * batch, channels, height, width)
        pixels = batch // groups * height * width
        with torch.cuda.device_of(out):
            _combine[triton.cdiv(pixels, PIXELS), channels, edges * groups](
                total if total is None else total.contiguous(), *dense, *tables, strengths.contiguous(), out,
                channels, pixels, groups, height * width, len(skip) == batch, PIXELS, num_warps=8,
            )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        strengths, *operations = ctx.saved_tensors[:6]
        _, of_total, *needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            inputs = strengths, *operations
            with runtime.grouped(ctx.groups):
                return None, gradient if of_total else None, *twins.gradients(_twin, inputs, needed, gradient)

        tables, strengths, dy = ctx.saved_tensors[6:], strengths.contiguous(), gradient.contiguous()
        dense = [operation.contiguous() for operation in operations]
        max_pooled, avg_pooled, skip, separable, dilated = dense
        batch, channels, height, width = max_pooled.shape
        edges, shared = len(strengths), len(skip) == batch
        pixels, plane = batch // ctx.groups * height * width, height * width
        blocks = triton.cdiv(pixels, PIXELS)
        parts = min(blocks, max(1, 1024 // channels))
        part_sums = dy.new_empty(edges * ctx.groups, parts, 8, channels)
        d_max, d_avg, d_skip, d_sep, d_dil = (torch.empty_like(operation) for operation in dense)
        with torch.cuda.device_of(dy):
            _combine_sums[channels, parts, edges * ctx.groups](
                dy, *dense, *tables, part_sums, channels, pixels, ctx.groups, triton.cdiv(blocks, parts), plane,
                shared, needed[0], PIXELS, num_warps=8,
            )  # fmt: skip
            sums = part_sums.sum(1)
            _combine_gradients[blocks, channels, edges * ctx.groups](
                dy, separable, dilated, *tables[2:], strengths, sums, d_sep, d_dil, None if shared else d_skip,
                channels, pixels, ctx.groups, plane, PIXELS,
            )  # fmt: skip
            _combine_shared_gradients[blocks, channels, ctx.groups](
                dy, max_pooled, avg_pooled, *tables[:2], strengths, sums, d_max, d_avg, d_skip if shared else None,
                edges, channels, pixels, plane, PIXELS, num_warps=8,
            )  # fmt: skip
        of_strengths = sums[:, :7].sum(2).view(edges, -1, 7).sum(1) if needed[0] else None
        return None, gradient if of_total else None, of_strengths, d_max, d_avg, d_skip, d_sep, d_dil


_twin = functools.partial(twins.combine, None)  # without a total, through which the gradient goes as it is


def combine(total: Tensor | None, strengths: Tensor, *operations: Tensor) -> Tensor:
    """As `arnas.kernels.twins.combine`, of the same arguments, all by position."""
    return _Combine.apply(runtime.groups(), total, strengths, *operations)  # type: ignore[no-any-return]
