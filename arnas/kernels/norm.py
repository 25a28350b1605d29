"""Mean, variance and reciprocal standard deviation of each channel, which batch norms in other kernels share.

Computes from x [N, C, H, W] the table [G, 3, C], of each of G groups of samples; a program reads one channel of one
group. Bytes: x once.
Measured (H100, torch 2.11, prototype, in the whole search step): 7.8 us a launch on average; its share of the
bandwidth was not measured.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from arnas.kernels.twins import EPS


@triton.jit
def _statistics(x, out, C, SIZE, PLANE: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr):
    c = tl.program_id(0)
    x += tl.program_id(1) * C * SIZE
    out += tl.program_id(1) * 3 * C
    centre = tl.load(x + c * PLANE)  # of the order of the mean: no cancellation in the variance
    total = tl.zeros([BLOCK], x.dtype.element_ty)
    squares = tl.zeros([BLOCK], x.dtype.element_ty)
    for start in range(0, SIZE, BLOCK):
        n = start + tl.arange(0, BLOCK)
        place = (n // PLANE * C + c) * PLANE + n % PLANE
        value = tl.where(n < SIZE, tl.load(x + place, mask=n < SIZE, other=0.0) - centre, 0.0)
        total += value
        squares += value * value
    mean = tl.sum(total, 0) / SIZE
    variance = tl.sum(squares, 0) / SIZE - mean * mean
    variance = tl.where(variance < 0, 0.0, variance)
    tl.store(out + c, mean + centre)
    tl.store(out + C + c, variance)
    tl.store(out + 2 * C + c, 1 / tl.sqrt(variance + EPS))


def statistics(x: Tensor, groups: int = 1) -> Tensor:
    """Of contiguous images [N, C, H, W] the means, (biased) variances and reciprocal standard deviations, [G, 3, C].

    Args:
        groups: G; N is a multiple of it.
    """
    batch, channels, height, width = x.shape
    size = batch // groups * height * width
    out = x.new_empty(groups, 3, channels)
    block = min(4096, triton.next_power_of_2(size))
    with torch.cuda.device_of(x):
        _statistics[channels, groups](
            x, out, channels, size, height * width, EPS, block, num_warps=8 if size >= 4096 else 4
        )
    return out
