"""Triton kernels for what torch does slowly on a GPU: one idea a file, each with its twin in torch.

Whether they compute or torch does is decided by the input (`usable`); both give the same but for rounding, and all
gradients, which can be differentiated again. The twin is the oracle of the tests and the way to second derivatives.

On a GPU images are contiguous [N, C, H, W], not channels_last: so the supernet was 1.7 times as fast on an H100, and so
the gradient of torch's average pool is right. What comes in another memory format is copied.
"""

import os
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from arnas import runtime

# products and sums in one rounding: Triton warns if this is left to its default, which is going to change
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


def usable(x: Tensor, copies: int = 1) -> bool:
    """Whether kernels compute on this tensor, or on so many copies of it: in the fast form, on a GPU for which Triton
    builds them, in single or double precision.

    With TRITON_INTERPRET=1 Triton interprets its kernels in numpy, slowly; then they are for CPU tensors, as in tests.
    """
    device = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
    return (
        x.device.type == device
        and x.dtype in (torch.float32, torch.float64)
        and 0 < copies * x.numel() < 2**31  # kernels count in 32 bits
        and runtime.fast()
        and _built(x.device)
    )


@cache
def _built(device: torch.device) -> bool:
    """Whether Triton is here, and builds kernels: on a GPU it needs a C compiler and Python's headers."""
    try:
        from arnas.kernels import compiling
        from arnas.kernels.norm import statistics

        compiling.tell()
        statistics(torch.ones(1, 1, 2, 2, device=device))
    except ImportError:
        return False
    except Exception as error:  # whatever a compiler says
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        runtime.say("kernels", f"Triton cannot build them here ({reason}), and PyTorch does their work.")
        return False
    return True


def relu_depthwise(x: Tensor, convolution: nn.Conv2d, norm: nn.Module | None = None) -> Tensor:
    """ReLU and a depthwise convolution; before them a batch norm, if there is one.

    Args:
        x: Images [N, C, H, W].
        convolution: Depthwise, without bias, its padding such that it keeps the size but for the stride.
        norm: What stands between x and the ReLU; a kernel takes along a batch norm with the statistics of the batch.

    Returns:
        Images [N, C, H / stride, W / stride], rounded up.
    """
    if not usable(x):
        return convolution(functional.relu(x if norm is None else norm(x)))  # type: ignore[no-any-return]

    from arnas.kernels import depthwise

    geometry = convolution.stride[0], convolution.dilation[0]
    weights = [convolution.weight.transpose(0, 1)]  # a stack of one
    fusible = isinstance(norm, nn.BatchNorm2d) and getattr(norm, "fusible", True)
    if not (isinstance(norm, nn.BatchNorm2d) and fusible and (norm.training or norm.running_mean is None)):
        return depthwise.relu_depthwise(x if norm is None else norm(x), weights, *geometry)
    groups = runtime.groups() if norm.running_mean is None else 1
    y, table = depthwise.norm_relu_depthwise(x, norm.weight, norm.bias, weights, *geometry, groups)
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        size = x.numel() // x.shape[1]
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(table[0, 0], norm.momentum or 0.0)
        norm.running_var.lerp_(table[0, 1] * (size / (size - 1)), norm.momentum or 0.0)
    return y
