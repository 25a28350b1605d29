"""The supernet: every edge computes all seven operations, weighted by the softmax of its architecture parameters.

Paper section 3.1. This is the plain form, edge by edge as the paper would write it.
"""

import functools

import torch
from torch import Tensor, nn

from arnas.space.layout import EDGES, KINDS, NODES, Cell, Layout
from arnas.space.operations import OPERATIONS, FactorizedReduce, ReLUConvBN


class Supernet(nn.Module):
    """Supernet over images [N, channels_in, H, W] in [0, 1], to logits [N, classes].

    `architecture` has for each cell kind the parameters [14, 7] that all cells of the kind share; `weights()` are all
    other parameters. Batch norms use batch statistics only, in training and evaluation alike.
    """

    def __init__(self, layout: Layout, channels: int, classes: int, channels_in: int = 3):
        super().__init__()
        self.architecture = nn.ParameterDict(
            {kind: 1e-3 * torch.randn(EDGES, len(OPERATIONS)) for kind in KINDS.values()}
        )
        stem_norm = nn.BatchNorm2d(3 * channels, track_running_stats=False)
        self.stem = nn.Sequential(nn.Conv2d(channels_in, 3 * channels, 3, padding=1, bias=False), stem_norm)
        plan = list(layout.plan(channels))
        self.kinds = [cell.kind for cell in plan]
        self.cells = nn.ModuleList(_SuperCell(cell) for cell in plan)
        self.head = nn.Linear(plan[-1].channels_out, classes)

    def weights(self) -> list[nn.Parameter]:
        """The parameters of the lower level: all but the architecture."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("architecture.")]

    def forward(self, images: Tensor) -> Tensor:
        strengths = {kind: torch.softmax(alpha, -1) for kind, alpha in self.architecture.items()}
        before_last = last = self.stem(images)
        for cell, kind in zip(self.cells, self.kinds, strict=True):
            before_last, last = last, cell(before_last, last, strengths[kind])
        return self.head(last.mean((2, 3)))  # type: ignore[no-any-return]


class _SuperCell(nn.Module):
    def __init__(self, cell: Cell):
        super().__init__()
        self.inputs = CellInputs(cell, affine=False)
        self.edges = nn.ModuleList(
            _MixedOperation(cell.channels, cell.stride if source < 2 else 1)
            for node in range(NODES)
            for source in range(2 + node)
        )

    def forward(self, before_last: Tensor, last: Tensor, strengths: Tensor) -> Tensor:
        states = list(self.inputs(before_last, last))
        edges = iter(zip(self.edges, strengths, strict=True))
        for _ in range(NODES):
            # zip ends with the states: the edges go on where this node's inputs end
            terms = (edge(state, strength) for state, (edge, strength) in zip(tuple(states), edges, strict=False))
            states.append(functools.reduce(torch.add, terms))
        return torch.cat(states[2:], 1)


class _MixedOperation(nn.Module):
    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.operations = nn.ModuleList(make(channels, stride, False) for make in OPERATIONS.values())

    def forward(self, x: Tensor, strengths: Tensor) -> Tensor:
        terms = (strength * operation(x) for strength, operation in zip(strengths, self.operations, strict=True))
        return functools.reduce(torch.add, terms)  # type: ignore[no-any-return]


class CellInputs(nn.Module):
    """Brings the outputs of the two cells before to the width and resolution of this one."""

    def __init__(self, cell: Cell, affine: bool):
        super().__init__()
        before_last = FactorizedReduce if cell.after_reduction else ReLUConvBN
        self.before_last = before_last(cell.channels_before_last, cell.channels, affine)
        self.last = ReLUConvBN(cell.channels_last, cell.channels, affine)

    def forward(self, before_last: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        return self.before_last(before_last), self.last(last)
