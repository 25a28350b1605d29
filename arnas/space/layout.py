"""Which kind of cell stands where, and how wide it is: one description for supernet and network.

Written as text, a cell is a letter and its width in multiples of the initial filters C: `A` accurate, `R` robust,
`D` reduce (it halves the resolution). The paper's network of eight cells is "A1 A1 D2 A2 A2 D2 R2 R2".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from arnas.errors import InvalidInput

KINDS = {"A": "accurate", "D": "reduce", "R": "robust"}
WIDTHS = (1, 2, 2)  # of the paper's cells before, between and after the reductions, in multiples of C
NODES = 4  # intermediate nodes of a cell; its output is their concatenation
EDGES = sum(2 + node for node in range(NODES))  # from the two inputs and the nodes before: 14


@dataclass(frozen=True)
class Cell:
    """A cell's place in the network: its kind, and the channels it reads and works with."""

    kind: str  # accurate, reduce or robust
    channels_before_last: int  # of the output of the cell before last
    channels_last: int  # of the output of the last cell
    channels: int  # of each node
    after_reduction: bool  # the cell before last has twice the resolution of the last

    @property
    def channels_out(self) -> int:
        return NODES * self.channels

    @property
    def stride(self) -> int:
        """Stride of the edges that leave the cell's inputs."""
        return 2 if self.kind == "reduce" else 1


@dataclass(frozen=True)
class Layout:
    """Cell kinds (letters) and widths (multiples of C), in order."""

    cells: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Read a layout such as "A1 A1 D2 R2".

        Raises:
            InvalidInput: A cell is not a letter of A, D, R and a positive width.
        """
        cells = []
        for word in text.split():
            match = re.fullmatch(r"([ADR])([1-9]\d?)", word)
            if match is None:
                raise InvalidInput(
                    f"layout has {word!r}; a cell is A (accurate), R (robust) or D (reduce) and a width, such as D2."
                )
            cells.append((match[1], int(match[2])))
        if not cells:
            raise InvalidInput('layout is empty; write cells such as "A1 A1 D2 A2 A2 D2 R2 R2".')
        return cls(tuple(cells))

    @classmethod
    def paper(cls, layers: int, widths: tuple[int, int, int] = WIDTHS) -> "Layout":
        """The paper's placement of L >= 3 cells: reductions at a third and two thirds, accurate before, robust after.

        Its widths are doubled at the first reduction only; those of DARTS and its kin, (1, 2, 4), at both.
        """
        if layers < 3:
            raise InvalidInput(f"layers {layers} is too few; the paper's placement needs 3 cells or more.")
        first, second = layers // 3, 2 * layers // 3
        letters = ("D" if index in (first, second) else "A" if index < second else "R" for index in range(layers))
        return cls(
            tuple((letter, widths[(index >= first) + (index >= second)]) for index, letter in enumerate(letters))
        )

    def __str__(self) -> str:
        return " ".join(f"{letter}{width}" for letter, width in self.cells)

    def plan(self, channels: int) -> Iterator[Cell]:
        """The cells of a network of C = `channels` initial filters, whose stem has 3C."""
        before_last = last = 3 * channels
        after_reduction = False
        for letter, width in self.cells:
            cell = Cell(KINDS[letter], before_last, last, width * channels, after_reduction)
            yield cell
            before_last, last = last, cell.channels_out
            after_reduction = cell.kind == "reduce"

    def kinds(self) -> set[str]:
        """The kinds of cell that stand somewhere."""
        return {KINDS[letter] for letter, _ in self.cells}

    def last_reduction(self) -> int | None:
        """Index of the last reduce cell, where the auxiliary head sits."""
        return max((index for index, (letter, _) in enumerate(self.cells) if letter == "D"), default=None)


def choose_stem_stride(wanted: int | None, shape: tuple[int, int, int]) -> int:
    """Stride of the first convolution: the one wanted, or else 2 for images [C, H, W] of 64 pixels a side or more.

    So the published code trains on Tiny-ImageNet; smaller images keep their resolution, as on CIFAR-10.
    """
    return wanted or (2 if min(shape[1:]) >= 64 else 1)
