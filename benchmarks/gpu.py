"""What a GPU did in a step, and the least time that the step's bytes take there."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTION, BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


class ConvolutionBytes(TorchDispatchMode):
    """Counts in `total` the bytes that convolutions read and write, forward and backward, each tensor once.

    What lies between them (norms, ReLUs, sums) could be fused into them, so that less would hardly do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in (CONVOLUTION, BACKWARD):
            read = list(args)
            if func is BACKWARD and not args[-1][1]:
                read[1] = None  # without a gradient of the weights the images are not read
            self.total += sum(tensor.nbytes for tensor in tree_leaves((read, found)) if isinstance(tensor, Tensor))
        return found


def bytes_moved(step: Callable[[], object]) -> int:
    """Bytes of a step's convolutions; it must be in the plain form, whose operations are torch's."""
    with ConvolutionBytes() as counted:
        step()
    return counted.total


def bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of copying 1 GiB within the memory of a GPU: the best of ten."""
    source = torch.zeros(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    with torch.cuda.device(device):
        for _ in range(10):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            target.copy_(source)
            end.record()
            torch.cuda.synchronize(device)
            best = min(best, start.elapsed_time(end) / 1000)
    return 2 * source.nbytes / best


def profile(step: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Kernels and copies of a step: their number, and the seconds that they were busy, summed; and of those that took
    longest the same, by name."""
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as record:
        step()
        torch.cuda.synchronize(device)
    # of half a million events the profiler's own lists take minutes
    events = [event for event in record.profiler.kineto_results.events() if event.device_type() == DeviceType.CUDA]
    found = [(event.name(), event.duration_ns() / 1e9) for event in events]
    return {"launches": len(found), "busy_seconds": sum(taken for _, taken in found), "longest": longest(found)}


def longest(events: list[tuple[str, float]], count: int = 20) -> dict[str, dict[str, float]]:
    """Launches and seconds by kernel, those first that took longest; template arguments are cut off."""
    sums: dict[str, dict[str, float]] = {}
    for name, seconds in events:
        mine = sums.setdefault(name.partition("<")[0].removeprefix("void ")[:80], {"launches": 0, "seconds": 0.0})
        mine["launches"] += 1
        mine["seconds"] += seconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]["seconds"])[:count])
