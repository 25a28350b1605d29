"""The supernet: every edge computes all seven operations, weighted by the softmax of its architecture parameters.

Paper section 3.1. A cell is computed in one of two forms that differ in rounding only: the plain one, edge by edge as
the paper would write it, and the fast one, which computes all edges that leave one source at once.
"""

import functools

import torch
from torch import Tensor, nn

from arnas import kernels, runtime
from arnas.space import stacked
from arnas.space.layout import EDGES, KINDS, NODES, Cell, Layout
from arnas.space.operations import OPERATIONS, BatchStatisticsNorm, FactorizedReduce, ReLUConvBN


class Supernet(nn.Module):
    """Supernet over images [N, channels_in, H, W] in [0, 1], to logits [N, classes].

    `architecture` has for each cell kind the parameters [14, 7] that all cells of the kind share; `weights()` are all
    other parameters. Batch norms use batch statistics only, in training and evaluation alike.
    """

    def __init__(self, layout: Layout, channels: int, classes: int, channels_in: int = 3, stem_stride: int = 1):
        super().__init__()
        self.architecture = nn.ParameterDict(
            {kind: 1e-3 * torch.randn(EDGES, len(OPERATIONS)) for kind in KINDS.values()}
        )
        stem_norm = BatchStatisticsNorm(3 * channels, affine=True)
        self.stem = nn.Sequential(nn.Conv2d(channels_in, 3 * channels, 3, stem_stride, 1, bias=False), stem_norm)
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
        inputs = self.inputs(before_last, last)
        nodes = self._by_source(inputs, strengths) if runtime.fast() else self._by_node(inputs, strengths)
        return torch.cat(nodes, 1)

    def _by_node(self, inputs: tuple[Tensor, Tensor], strengths: Tensor) -> list[Tensor]:
        """The plain form: a node is the sum of the edges that lead to it."""
        states = list(inputs)
        edges = iter(zip(self.edges, strengths, strict=True))
        for _ in range(NODES):
            # zip ends with the states: the edges go on where this node's inputs end
            terms = (edge(state, strength) for state, (edge, strength) in zip(tuple(states), edges, strict=False))
            states.append(functools.reduce(torch.add, terms))
        return states[2:]

    def _by_source(self, inputs: tuple[Tensor, Tensor], strengths: Tensor) -> list[Tensor]:
        """The fast form: the same sums, but all edges that leave one source are computed at once."""
        by_samples = kernels.usable(inputs[0], stacked.COPIES)
        leave, axis = (stacked.by_samples, 0) if by_samples else (stacked.by_channels, 1)
        of_edges = strengths.unbind()
        nodes: list[Tensor] = []
        sums = None  # of the nodes to come
        for source in range(NODES + 1):
            state = inputs[source] if source < 2 else nodes[source - 2]
            places = [node * (node + 3) // 2 + source for node in range(max(source - 1, 0), NODES)]
            sums = leave([self.edges[place] for place in places], state, [of_edges[place] for place in places], sums)
            if source:
                size = state.shape[axis]  # of one edge in the stack
                complete, sums = sums.split((size, sums.shape[axis] - size), axis)
                nodes.append(complete.contiguous(memory_format=runtime.memory_format(complete.device)))
        return nodes


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
