"""Networks as attacks see them: in evaluation mode a batch norm is a scale and a shift, and a convolution takes it on.

The function is the same but for rounding; an attack, which passes through it many times, is spared the batch norms that
follow convolutions. Those before them, in networks of pre-activation, stay: a ReLU stands between.
"""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from arnas import runtime
from arnas.graphs import Graphed
from arnas.space.classifier import Classifier
from arnas.space.operations import FactorizedReduce


def attackable(network: nn.Module) -> Callable[[], nn.Module]:
    """What attacks shall be given for a network, which may go on changing.

    Returns:
        A function that gives it as the network is now: a folded copy, whose passes are CUDA graphs on a GPU, or the
        network itself in the plain form. Only a `Classifier` is folded, since we know how it computes.
    """
    if not runtime.fast():
        return lambda: network
    if not isinstance(network, Classifier):
        replayed = Graphed(network)
        return lambda: replayed
    folded = Folded(network)
    graphed = Graphed(folded.refresh())

    def current() -> nn.Module:
        folded.refresh()
        return graphed

    return current


class Folded:
    """A copy of a network in evaluation mode, frozen, each batch norm folded into the convolution right before it.

    It has no auxiliary head, and shares no tensor with the network, whose device, type and memory format it has.
    """

    def __init__(self, network: Classifier):
        self._copy = copy.deepcopy(network)
        if hasattr(self._copy, "auxiliary"):
            del self._copy.auxiliary  # for training only
        self._norms: list[Any] = []  # the network's
        self._folded: list[list[Any]] = []  # by norm, the copy's convolutions that have taken it on
        for path, block in list(self._copy.named_modules()):
            for convolutions, name in _foldable(block):
                self._norms.append(network.get_submodule(path).get_submodule(name))
                self._folded.append(convolutions)
                setattr(block, name, nn.Identity())
        self._tensors: list[Tensor] = list(self._copy.parameters())
        self._sources: list[Tensor] = [network.get_parameter(name) for name, _ in self._copy.named_parameters()]
        # running means and variances of the batch norms that stay
        statistics = [name for name, buffer in self._copy.named_buffers() if buffer.is_floating_point()]
        self._tensors += [self._copy.get_buffer(name) for name in statistics]
        self._sources += [network.get_buffer(name) for name in statistics]
        for norm, convolutions in zip(self._norms, self._folded, strict=True):
            for convolution in convolutions:
                convolution.bias = nn.Parameter(norm.bias.new_empty(convolution.out_channels))
        self._copy.eval().requires_grad_(False)

    @torch.no_grad()
    def refresh(self) -> Classifier:
        """Bring the copy up to the network's parameters and running statistics, in place, and return it."""
        scales = torch._foreach_add([norm.running_var for norm in self._norms], [norm.eps for norm in self._norms])
        torch._foreach_rsqrt_(scales)
        torch._foreach_mul_(scales, [norm.weight for norm in self._norms])
        centres = torch._foreach_mul([norm.running_mean for norm in self._norms], scales)
        shifts = torch._foreach_sub([norm.bias for norm in self._norms], centres)

        folded = [convolution for convolutions in self._folded for convolution in convolutions]
        torch._foreach_copy_(self._tensors, self._sources)
        torch._foreach_mul_(
            [convolution.weight for convolution in folded], [scale[:, None, None, None] for scale in self._cut(scales)]
        )
        torch._foreach_copy_([convolution.bias for convolution in folded], self._cut(shifts))
        return self._copy

    def _cut(self, vectors: tuple[Tensor, ...]) -> list[Tensor]:
        """Vectors over the norms' channels, cut to those of the convolutions."""
        sizes = ([convolution.out_channels for convolution in convolutions] for convolutions in self._folded)
        return [part for vector, size in zip(vectors, sizes, strict=True) for part in vector.split(size)]


def _foldable(block: nn.Module) -> list[tuple[list[nn.Conv2d], str]]:
    """The names of a block's batch norms that directly follow convolutions, with these."""
    if isinstance(block, FactorizedReduce):
        return [([block.even, block.odd], "norm")]
    # in all other blocks the order of the modules is that of the computation
    return [
        ([first], name)
        for (_, first), (name, second) in pairwise(block.named_children())
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d)
    ]
