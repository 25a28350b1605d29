"""Which share of a GPU's bandwidth each Triton kernel reaches: the bytes that it has to move, by the time it takes.

At the size of the search's first cells, with so many images that no stack stays in the cache.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Call = tuple[str, int, Callable[[], object]]  # what it is, the bytes it moves, and itself


def measure(device: torch.device, bandwidth: float) -> list[dict]:
    """Median seconds, bytes and share of the bandwidth of every kernel, by CUDA graphs."""
    from triton.testing import do_bench_cudagraph

    found = []
    with torch.cuda.device(device):
        for name, moved, call in calls(device):
            seconds = do_bench_cudagraph(call, return_mode="median") / 1000
            share = moved / bandwidth / seconds
            found.append({"kernel": name, "seconds": seconds, "bytes": moved, "bandwidth_share": share})
    return found


def calls(
    device: torch.device, edges: int = 4, images: int = 256, channels: int = 24, pixels: int = 32
) -> Iterator[Call]:
    """Every kernel of arnas.kernels, on a stack of edges as in the supernet; bytes are those of its first lines."""
    from arnas.kernels import depthwise, edge
    from arnas.kernels.norm import statistics

    def tensor(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device) - 0.5

    size = channels, pixels, pixels
    weights = [tensor(edges, channels, kernel, kernel) for kernel in (3, 5)]
    x = tensor(images, *size)
    plain = depthwise._Convolutions(x, weights, (1, 1))
    y = plain.convolve()
    yield "ReLU, depthwise: forward", 2 * x.nbytes + y.nbytes, plain.convolve
    yield "ReLU, depthwise: input gradient", 5 * x.nbytes + y.nbytes, lambda: plain.gradient_of_x(y)
    yield "ReLU, depthwise: weight gradient", 2 * x.nbytes + y.nbytes, lambda: plain.gradients_of_weights(y)

    table = statistics(y, 2 * edges)
    normed = depthwise._Convolutions(y, weights, (1, 1), (table, None, None))
    yield "statistics", y.nbytes, lambda: statistics(y, 2 * edges)
    yield "norm, ReLU, depthwise: forward", 2 * y.nbytes, normed.convolve
    yield "norm, ReLU, depthwise: input gradient", 6 * y.nbytes, lambda: normed.gradient_of_x(y)
    yield "norm, ReLU, depthwise: weight gradient", 2 * y.nbytes, lambda: normed.gradients_of_weights(y)

    strengths = torch.rand(edges, 7, device=device, requires_grad=True)
    pools = [tensor(images, *size).requires_grad_() for _ in range(2)]
    stacks = [tensor(2 * edges * images, *size).requires_grad_() for _ in range(2)]
    total = tensor(edges * images, *size)
    wanted = [strengths, *pools, *stacks]

    def combined() -> Tensor:
        return edge.combine(total, strengths, *pools, x, *stacks)

    def there_and_back() -> object:
        return torch.autograd.grad(combined(), wanted, total)

    forward = 10 * total.nbytes + 5 * x.nbytes
    yield "seven operations: forward", forward, combined
    yield "seven operations: forward and backward", forward + 15 * total.nbytes + 8 * x.nbytes, there_and_back
