"""The seven operations of a cell's edge, and the small blocks they are made of.

Every block keeps the number of channels unless it says so, and halves the resolution (rounding up) with stride 2.
`affine` is False in the supernet, whose batch norms have no scale and shift and keep no running statistics: batch
statistics are part of the searched function, and attacks leave no trace in them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from arnas import kernels
from arnas.kernels import twins
from arnas.space.gradients import Convolution


def batch_norm(channels: int, affine: bool) -> nn.BatchNorm2d:
    """Batch norm of a trained network (`affine`), or of the supernet (batch statistics only)."""
    return nn.BatchNorm2d(channels) if affine else BatchStatisticsNorm(channels, affine=False)


class BatchStatisticsNorm(nn.BatchNorm2d):
    """By batch statistics only, those of each group within `runtime.grouped`."""

    def __init__(self, channels: int, affine: bool):
        super().__init__(channels, affine=affine, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return twins.batch_norm(x, self.weight, self.bias)


class ReLUConvBN(nn.Sequential):
    """ReLU, 1x1 convolution from `channels_in` to `channels`, batch norm."""

    def __init__(self, channels_in: int, channels: int, affine: bool):
        super().__init__(nn.ReLU(), Convolution(channels_in, channels, 1, bias=False), batch_norm(channels, affine))


class FactorizedReduce(nn.Module):
    """Halves the resolution without losing pixels: two strided 1x1 convolutions, one shifted by a pixel."""

    def __init__(self, channels_in: int, channels: int, affine: bool):
        super().__init__()
        self.even = Convolution(channels_in, channels // 2, 1, stride=2, bias=False)
        self.odd = Convolution(channels_in, channels - channels // 2, 1, stride=2, bias=False)
        self.norm = batch_norm(channels, affine)

    def forward(self, x: Tensor) -> Tensor:
        x, shifted = self.views(x)
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], 1))  # type: ignore[no-any-return]

    @staticmethod
    def views(x: Tensor) -> tuple[Tensor, Tensor]:
        """What the two convolutions see."""
        x = functional.relu(x)
        return x, functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]  # padded, so that odd sizes fit too


class DepthwiseSeparable(nn.Sequential):
    """ReLU, depthwise convolution, 1x1 convolution, batch norm."""

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int, affine: bool):
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.ReLU(),
            Convolution(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
            Convolution(channels, channels, 1, bias=False),
            batch_norm(channels, affine),
        )

    @property
    def depthwise(self) -> Convolution:
        return self[1]  # type: ignore[return-value]

    @property
    def pointwise(self) -> Convolution:
        return self[2]  # type: ignore[return-value]

    @property
    def norm(self) -> nn.Module:
        return self[3]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolved(x))  # type: ignore[no-any-return]

    def convolved(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """All but the batch norm, of x or of norm(x)."""
        return self.pointwise(kernels.relu_depthwise(x, self.depthwise, norm))  # type: ignore[no-any-return]


class Separable(nn.Sequential):
    """Depthwise separable twice, the stride in the first; the batch norm between is computed with the second."""

    def __init__(self, channels: int, kernel: int, stride: int, affine: bool):
        super().__init__(
            DepthwiseSeparable(channels, kernel, stride, 1, affine), DepthwiseSeparable(channels, kernel, 1, 1, affine)
        )

    @property
    def halves(self) -> tuple[DepthwiseSeparable, DepthwiseSeparable]:
        return tuple(self)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.halves
        return second.norm(second.convolved(first.convolved(x), first.norm))  # type: ignore[no-any-return]


def _separable(kernel: int) -> Callable[[int, int, bool], nn.Module]:
    return lambda channels, stride, affine: Separable(channels, kernel, stride, affine)


def _dilated(kernel: int) -> Callable[[int, int, bool], nn.Module]:
    return lambda channels, stride, affine: DepthwiseSeparable(channels, kernel, stride, 2, affine)


def _pool(kind: Callable[[int], nn.Module]) -> Callable[[int, int, bool], nn.Module]:
    # in the supernet a batch norm brings the pools to the scale of the other operations
    return lambda channels, stride, affine: (
        kind(stride) if affine else nn.Sequential(kind(stride), batch_norm(channels, False))
    )


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


#: name -> (channels, stride, affine) -> module, in the order of the architecture parameters' columns
OPERATIONS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "max_pool_3x3": _pool(lambda stride: nn.MaxPool2d(3, stride, 1)),
    "avg_pool_3x3": _pool(lambda stride: nn.AvgPool2d(3, stride, 1, count_include_pad=False)),
    "skip_connect": _skip,
    "sep_conv_3x3": _separable(3),
    "sep_conv_5x5": _separable(5),
    "dil_conv_3x3": _dilated(3),
    "dil_conv_5x5": _dilated(5),
}
