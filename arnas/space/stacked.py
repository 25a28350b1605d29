"""The fast form of a cell: all edges that leave a source at once, in a few large operations.

In torch edges are stacked as channels, [N, E * C, H, W]: the vectors of a CPU hold more than the C channels of an edge,
and on a GPU a large operation hardly takes longer than a small one. Our kernels take edges before samples,
[E * N, C, H, W], as groups of images with weights and statistics of their own. Weights stay parameters of their edges;
a copy a pass lays those of a source side by side.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from arnas import runtime
from arnas.kernels import pointwise, twins
from arnas.space.gradients import convolve

#: How many times the size of its source a stack may have: two kernel sizes of four edges
COPIES = 8


def by_channels(edges: Sequence[Any], x: Tensor, strengths: Sequence[Tensor], total: Tensor | None) -> Tensor:
    """What edges make of their source, added to what other edges gave.

    Args:
        edges: E modules, each with the seven `operations`.
        x: The source, [N, C, H, W].
        strengths: How much each operation counts, [7] an edge.
        total: [N, E * C, H / stride, W / stride] or None.

    Returns:
        The sums, as total.
    """
    stride, stages = edges[0].operations[0][0].stride, _weights(edges)
    # of each operation, for all channels of the stack; dense, since batch norm's way back takes it as such
    scales = torch.stack(list(strengths), 1).unsqueeze(2).expand(-1, -1, x.shape[1]).flatten(1).contiguous()
    rectified = torch.cat([functional.relu(x)] * len(edges), 1)
    terms = [] if total is None else [total]
    for size in (0, 1):  # 3x3 and 5x5
        first, second, only = ((stage[size], stage[2].chunk(2)[size]) for stage in stages)
        y = functional.relu(twins.batch_norm(_separable(rectified, *first, stride, 1)))
        terms.append(twins.batch_norm(_separable(y, *second, 1, 1), scales[3 + size]))
        terms.append(twins.batch_norm(_separable(rectified, *only, stride, 2), scales[5 + size]))
    if stride > 1:
        halves = [_convolve(half, weights, 1) for half, weights in _skips(x, edges)]
        parts = zip(*(half.chunk(len(edges), 1) for half in halves), strict=True)
        terms.append(twins.batch_norm(torch.cat([half for edge in parts for half in edge], 1), scales[2]))
    sums = functools.reduce(torch.add, terms)
    shared = [operation(x) for operation in edges[0].operations[: 3 if stride == 1 else 2]]
    for y, scale in zip(shared, scales, strict=False):
        sums = torch.addcmul(sums, torch.cat([y] * len(edges), 1), scale[:, None, None])
    return _with_gradient_alike(sums)


def by_samples(edges: Sequence[Any], x: Tensor, strengths: Sequence[Tensor], total: Tensor | None) -> Tensor:
    """The same by our kernels, with total [E * N, C, H / stride, W / stride]."""
    from arnas.kernels import depthwise, edge  # where Triton is

    max_pool, avg_pool = (pooling[0] for pooling in edges[0].operations[:2])  # their batch norms come last
    stride, (first, second, only) = max_pool.stride, _weights(edges)
    y = pointwise.stacked(depthwise.relu_depthwise(x, first[:2], stride, 1), first[2])
    y, _ = depthwise.norm_relu_depthwise(y, None, None, second[:2], 1, 1, runtime.groups())
    y = pointwise.stacked(y, second[2])
    z = pointwise.stacked(depthwise.relu_depthwise(x, only[:2], stride, 2), only[2])
    skip = x
    if stride > 1:
        halves = [pointwise.stacked(half, weights, shared=True) for half, weights in _skips(x, edges)]
        with runtime.grouped(len(edges) * runtime.groups()):
            skip = twins.batch_norm(torch.cat(halves, 1))
    return edge.combine(total, torch.stack(list(strengths)), max_pool(x), avg_pool(x), skip, y, z)


def _with_gradient_alike(x: Tensor) -> Tensor:
    """x itself, whose gradient will come in the memory format of x: some come in another one, in which the way back
    would go on, through batch norms several times as slow."""
    if x.requires_grad:
        last = x.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if last else torch.contiguous_format
        x.register_hook(lambda gradient: gradient.contiguous(memory_format=memory_format))
    return x


def _weights(edges: Sequence[Any]) -> list[list[Tensor]]:
    """Of the first and second half of the separable convolutions, and of the dilated ones: depthwise [E, C, 3, 3] and
    [E, C, 5, 5], and the 1x1 behind both, [2 * E, C, C]."""
    separable, dilated = ([[mixed.operations[i] for mixed in edges] for i in pair] for pair in ((3, 4), (5, 6)))
    halves = [[[operation.halves[i] for operation in size] for size in separable] for i in (0, 1)]
    lists = []
    for stage in (*halves, dilated):
        lists += [[block.depthwise.weight.squeeze(1) for block in size] for size in stage]
        lists += [[block.pointwise.weight.flatten(1) for size in stage for block in size]]
    stacks = _stacks(lists)
    return [stacks[place : place + 3] for place in range(0, len(stacks), 3)]


def _skips(x: Tensor, edges: Sequence[Any]) -> list[tuple[Tensor, Tensor]]:
    """What strided skip connections, each a `FactorizedReduce`, convolve, and the weights, [E, C / 2, C]."""
    skips = [mixed.operations[2] for mixed in edges]
    even, odd = _stacks([[getattr(skip, side).weight.flatten(1) for skip in skips] for side in ("even", "odd")])
    x, shifted = skips[0].views(x)
    return [(x[:, :, ::2, ::2], even), (shifted[:, :, ::2, ::2], odd)]


def _stacks(lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The tensors of each list, which are of one shape, as one; all by one copy, on the way back, too."""
    flat = torch.cat([tensor.flatten() for tensors in lists for tensor in tensors])
    parts = flat.split([len(tensors) * tensors[0].numel() for tensors in lists])
    return [part.view(len(tensors), *tensors[0].shape) for part, tensors in zip(parts, lists, strict=True)]


def _separable(x: Tensor, depthwise: Tensor, pointwise: Tensor, stride: int, dilation: int) -> Tensor:
    """A depthwise and a 1x1 convolution of each edge, of x [N, E * C, H, W] by [E, C, K, K] and [E, C, C]."""
    padding = dilation * (depthwise.shape[-1] // 2)
    pairs = (stride, stride), (padding, padding), (dilation, dilation)
    y = convolve(x, depthwise.flatten(0, 1).unsqueeze(1), None, *pairs, x.shape[1])
    return _convolve(y, pointwise, len(pointwise))


def _convolve(x: Tensor, weights: Tensor, groups: int) -> Tensor:
    """1x1 convolutions of x, all of it (one group) or each of its part, by [E, O, I]."""
    return convolve(x, weights.flatten(0, 1)[:, :, None, None], None, (1, 1), (0, 0), (1, 1), groups)
