"""The fast form of a cell on a GPU: all edges that leave a source at once, in a few large kernels.

Edges are stacked before samples: what E edges compute of N images is [E * N, C, H, W], each part with the weights and
the statistics of its edge. Weights stay parameters of their edges; a copy a pass lays those of a source side by side.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from arnas import runtime
from arnas.kernels import pointwise, twins

#: How many times the size of its source a stack may have: two kernel sizes of four edges
COPIES = 8

DepthwiseSeparables = Sequence[Sequence[Any]]  # of each kernel size (3 and 5), of each edge


def leave(edges: Sequence[Any], x: Tensor, strengths: Sequence[Tensor], total: Tensor | None) -> Tensor:
    """What edges make of their source, added to what other edges gave.

    Args:
        edges: E modules, each with the seven `operations`.
        x: The source, [N, C, H, W].
        strengths: How much each operation counts, [7] an edge.
        total: [E, N, C, H / stride, W / stride] or None.

    Returns:
        The sums, as total.
    """
    from arnas.kernels import depthwise, edge  # where Triton is

    max_pool, avg_pool = (pooling[0] for pooling in edges[0].operations[:2])  # their batch norms come last
    stride = max_pool.stride
    separable, dilated = ([[mixed.operations[i] for mixed in edges] for i in pair] for pair in ((3, 4), (5, 6)))
    halves = ([[operation.halves[i] for operation in size] for size in separable] for i in (0, 1))
    first, second, only = _weights(*halves, dilated)

    y = pointwise.stacked(depthwise.relu_depthwise(x, first[:2], stride, 1), first[2])
    y, _ = depthwise.norm_relu_depthwise(y, None, None, second[:2], 1, 1, runtime.groups())
    y = pointwise.stacked(y, second[2])
    z = pointwise.stacked(depthwise.relu_depthwise(x, only[:2], stride, 2), only[2])
    skip = x if stride == 1 else _reduced(x, [mixed.operations[2] for mixed in edges])
    total = None if total is None else total.flatten(0, 1)
    sums: Tensor = edge.combine(total, torch.stack(list(strengths)), max_pool(x), avg_pool(x), skip, y, z)
    return sums.unflatten(0, (len(edges), -1))  # type: ignore[no-any-return]


def _weights(*stages: DepthwiseSeparables) -> list[list[Tensor]]:
    """Of each stage: depthwise [E, C, 3, 3] and [E, C, 5, 5], and the 1x1 behind them, [2 * E, C, C]."""
    lists = []
    for stage in stages:
        lists += [[block.depthwise.weight.squeeze(1) for block in size] for size in stage]
        lists += [[block.pointwise.weight.flatten(1) for size in stage for block in size]]
    stacks = _stacks(lists)
    return [stacks[place : place + 3] for place in range(0, len(stacks), 3)]


def _stacks(lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The tensors of each list, which are of one shape, as one; all by one copy, on the way back, too."""
    flat = torch.cat([tensor.flatten() for tensors in lists for tensor in tensors])
    parts = flat.split([len(tensors) * tensors[0].numel() for tensors in lists])
    return [part.view(len(tensors), *tensors[0].shape) for part, tensors in zip(parts, lists, strict=True)]


def _reduced(x: Tensor, skips: Sequence[Any]) -> Tensor:
    """Strided skip connections, `FactorizedReduce` each, of images that they share."""
    x = functional.relu(x)
    shifted = functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
    even, odd = _stacks(
        [[skip.even.weight.flatten(1) for skip in skips], [skip.odd.weight.flatten(1) for skip in skips]]
    )
    halves = [
        pointwise.stacked(pixels[:, :, ::2, ::2], weights, shared=True)
        for pixels, weights in ((x, even), (shifted, odd))
    ]
    with runtime.grouped(len(skips) * runtime.groups()):
        return twins.batch_norm(torch.cat(halves, 1))
