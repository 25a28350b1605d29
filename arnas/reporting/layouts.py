"""Layouts drawn as rows of cells, and accuracies as dots in their intervals, to stand side by side.

Both are SVG that takes the colour of the page around it, and share with the drawings of cells the colours of the kinds.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from arnas.space.drawing import COLOURS
from arnas.space.layout import KINDS, Layout

CELL, GAP, HEIGHT, LEAST = 24, 3, 46, 16  # SVG units; LEAST still holds a letter
ROW = 20


def draw(layout: str, widest: int | None = None) -> str:
    """A layout from input to output: a box for each cell, as high as it is wide in filters.

    Args:
        layout: Such as "A1 D2 R2".
        widest: Multiple of the initial filters that fills the height, to compare drawings; that of the layout if None.
    """
    cells = Layout.parse(layout).cells
    most = widest or max(width for _, width in cells)
    boxes = []
    for index, (letter, width) in enumerate(cells):
        height = max(LEAST, round(HEIGHT * width / most))
        x, y = index * (CELL + GAP), HEIGHT - height
        boxes.append(
            f"<g><title>{KINDS[letter]} cell, {width} times the initial filters</title>"
            f'<rect x="{x}" y="{y}" width="{CELL}" height="{height}" rx="4" fill="{COLOURS[KINDS[letter]]}" />'
            f'<text x="{x + CELL / 2:g}" y="{HEIGHT - 4}">{letter}{width}</text></g>'
        )
    width = len(cells) * (CELL + GAP) - GAP
    label = "Layout: " + ", ".join(f"{KINDS[letter]} x{width}" for letter, width in cells)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" role="img" '
        f'aria-label={quoteattr(label)} font-size="11" font-weight="bold" text-anchor="middle" fill="#ffffff">'
        f"{''.join(boxes)}</svg>"
    )


def dots(scores: Sequence[tuple[str, str, Mapping[str, Any]]]) -> str:
    """Accuracies on a line from 0 to 100%, one below the other, each a dot in its 95% interval.

    It is as wide as there is room, and letters keep their size.

    Args:
        scores: What each is, its colour, and the score.
    """
    height = ROW * len(scores)
    lines = [f'<line x1="{at}%" x2="{at}%" y1="0" y2="{height}" opacity="0.18" />' for at in range(0, 101, 25)]
    marks, told = [], []
    for index, (name, colour, score) in enumerate(scores):
        y = ROW * (index + 0.5)
        low, high = (f"{100 * end:.2f}%" for end in score["interval"])
        marks.append(
            f'<line x1="{low}" x2="{high}" y1="{y:g}" y2="{y:g}" stroke="{colour}" stroke-width="6" opacity="0.4" />'
            f'<circle cx="{100 * score["accuracy"]:.2f}%" cy="{y:g}" r="4.5" fill="{colour}" />'
        )
        told.append(
            f"{name} {score['accuracy']:.1%}, between {score['interval'][0]:.1%} and {score['interval'][1]:.1%}"
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="100%" height="{height}" role="img" '
        f"aria-label={quoteattr('; '.join(told))}>"
        f'<g stroke="currentColor">{"".join(lines)}</g>{"".join(marks)}</svg>'
    )
