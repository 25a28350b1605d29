"""The hand-made networks that searched ones are compared with, in their CIFAR forms: a 3x3 stem and no max pool.

Each takes images of 8 pixels a side and more. `channels` scales its width; the published one is in `config.RIVALS`.
`_foldable` in `arnas.space.folding` relies on the order of a block's modules: it is that of the computation.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from arnas.space.classifier import Classifier
from arnas.space.gradients import Convolution


class Rival(Classifier):
    """Features, their average over the image, and a linear layer.

    Args:
        features: Stem and blocks, to `width` channels.
    """

    def __init__(self, features: Iterable[nn.Module], width: int, classes: int):
        super().__init__()
        self.features = nn.Sequential(*features)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))  # type: ignore[no-any-return]


def resnet18(channels: int, classes: int, channels_in: int, stem_stride: int) -> Rival:
    """ResNet-18 (He et al. 2016, arXiv 1512.03385), its four stages C, 2C, 4C and 8C wide."""
    from torchvision.models.resnet import BasicBlock  # takes seconds to import, and few networks need it

    blocks: list[nn.Module] = []
    width = channels
    for stage in range(4):
        for block in range(2):
            target, stride = channels * 2**stage, 2 if stage and not block else 1
            same = width == target and stride == 1
            blocks.append(BasicBlock(width, target, stride, None if same else _projection(width, target, stride)))
            width = target
    stem = _stem(channels_in, channels, stem_stride), nn.BatchNorm2d(channels), nn.ReLU()
    return Rival([*stem, *blocks], width, classes)


def _pre_activation(
    channels: int, classes: int, channels_in: int, stem_stride: int, multiples: Sequence[int], blocks: int
) -> Rival:
    """Pre-activation residual network: a stem of C channels, stages of `blocks` blocks that are multiples of C wide.

    The source of PreActResNet-18 is He et al. 2016 (arXiv 1603.05027), that of wide residual networks Zagoruyko and
    Komodakis 2016 (arXiv 1605.07146; no dropout, as in adversarial training). Both begin as He et al. 2015 do
    (arXiv 1502.01852), and both end in a batch norm, which some implementations of the former leave out.
    """
    features: list[nn.Module] = [_stem(channels_in, channels, stem_stride)]
    width = channels
    for stage, multiple in enumerate(multiples):
        for block in range(blocks):
            features.append(_PreActivationBlock(width, multiple * channels, 2 if stage and not block else 1))
            width = multiple * channels
    network = Rival([*features, nn.BatchNorm2d(width), nn.ReLU()], width, classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


class _PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU; a shortcut that changes the shape begins there too."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        same = channels_in == channels and stride == 1
        self.shortcut = None if same else Convolution(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.norm1(x))
        residue: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(active))))
        return residue + (x if self.shortcut is None else self.shortcut(active))


def densenet121(channels: int, classes: int, channels_in: int, stem_stride: int) -> Rival:
    """DenseNet-121 (Huang et al. 2017, arXiv 1608.06993), bottlenecks and compression a half; C is its growth rate."""
    width = 2 * channels
    features: list[nn.Module] = [_stem(channels_in, width, stem_stride)]
    for stage, layers in enumerate((6, 12, 24, 16)):
        if stage:
            # odd sizes are rounded up, so that every image size fits
            pool = nn.AvgPool2d(2, ceil_mode=True)
            features += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), pool]
            width //= 2
        features += [_DenseLayer(width + layer * channels, channels) for layer in range(layers)]
        width += layers * channels
    return Rival([*features, nn.BatchNorm2d(width), nn.ReLU()], width, classes)


class _DenseLayer(nn.Module):
    """Adds `growth` channels, computed from all that are there through a bottleneck of four times as many."""

    def __init__(self, channels_in: int, growth: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        bottleneck = functional.relu(self.norm2(self.conv1(functional.relu(self.norm1(x)))))
        return torch.cat([x, self.conv2(bottleneck)], 1)


def mobilenetv2(channels: int, classes: int, channels_in: int, stem_stride: int) -> Rival:
    """MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) in its usual CIFAR form.

    That form is 8 times coarser at its end than the image, not 32 times; it has ReLU for ReLU6, expands its first block
    too (by 1), and a block that changes the width alone has a 1x1 convolution as its shortcut.
    """

    def scaled(width: int) -> int:
        return max(1, round(width * channels / 32))

    width, last = channels, scaled(1280)
    features: list[nn.Module] = [_stem(channels_in, width, stem_stride), nn.BatchNorm2d(width), nn.ReLU()]
    # expansion, width where C is 32, blocks, stride of the first
    stages = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, published, blocks, stride in stages:
        for block in range(blocks):
            features.append(_InvertedResidual(width, scaled(published), 1 if block else stride, expansion))
            width = scaled(published)
    return Rival([*features, Convolution(width, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU()], last, classes)


class _InvertedResidual(nn.Module):
    """Wide inside: a 1x1 convolution expands, a depthwise 3x3 one filters, a 1x1 one without ReLU projects."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int):
        super().__init__()
        wide = expansion * channels_in
        self.residue = nn.Sequential(
            Convolution(channels_in, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            Convolution(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            Convolution(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = None
        if stride == 1:
            self.shortcut = nn.Identity() if channels_in == channels else _projection(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        residue: Tensor = self.residue(x)
        return residue if self.shortcut is None else residue + self.shortcut(x)


def _stem(channels_in: int, channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)


def _projection(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Convolution(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


#: name -> (channels, classes, channels_in, stem_stride) -> network; a wide one is named after depth and widening
NETWORKS: dict[str, Callable[..., Rival]] = {
    "resnet18": resnet18,
    "preactresnet18": partial(_pre_activation, multiples=(1, 2, 4, 8), blocks=2),
    "wrn-28-10": partial(_pre_activation, multiples=(10, 20, 40), blocks=4),
    "wrn-34-10": partial(_pre_activation, multiples=(10, 20, 40), blocks=5),
    "densenet121": densenet121,
    "mobilenetv2": mobilenetv2,
}
