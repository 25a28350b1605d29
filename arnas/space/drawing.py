"""Cells drawn as SVG, without graphviz.

Nodes stand on a diagonal. An edge falls from its source, turns right in a row of its own and passes through the name of
its operation into its target. The names of a row lie left of its target and right of every line that falls, so nothing
can cover them, whatever the genotype. Colours are middle tones and names have a ground of their own: both read on light
and on dark.
"""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

# white letters stand out from them, and they themselves from a dark page
COLOURS = {"accurate": "#1b7abb", "reduce": "#008561", "robust": "#c25500"}
TINTS = {"accurate": "#dcecf7", "reduce": "#d8efe7", "robust": "#fae5d6"}

Edge = tuple[str, int] | list[str | int]
Cell = Sequence[Sequence[Edge]]

# measures in SVG units; a letter of the names is about 7 wide
LEFT, TOP, INPUT_COLUMN, COLUMN, ROW = 32, 62, 58, 102, 82
RADIUS, ARROW, NAME_WIDTH, NAME_HEIGHT = 14, 8, 66, 34
FONT = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def draw(cells: Mapping[str, Cell]) -> str:
    """All cells of a genotype side by side as one self-contained SVG document.

    Args:
        cells: For each cell kind, in the order accurate, reduce, robust, its nodes; for each node its incoming edges as
            (operation, input), where inputs 0 and 1 are the two cells before and 2, 3, ... the nodes of the cell.
    """
    kinds = _kinds(cells)
    sizes = [_size(cells[kind]) for kind in kinds]
    width, height = sum(size[0] for size in sizes), max(size[1] for size in sizes)
    shift, groups = 0, []
    for kind, size in zip(kinds, sizes, strict=True):
        groups.append(f'<g transform="translate({shift} 0)">{_cell(kind, cells[kind])}</g>')
        shift += size[0]
    return _document(width, height, f"Cells of the genotype: {', '.join(kinds)}", "".join(groups))


def draw_cell(kind: str, cell: Cell) -> str:
    """One cell as a self-contained SVG document; its label for screen readers lists every edge."""
    edges = "; ".join(
        f"{_node_name(target + 2)} from " + " and ".join(f"{_node_name(int(s))} by {o}" for o, s in node)
        for target, node in enumerate(cell)
    )
    width, height = _size(cell)
    return _document(width, height, f"The {kind} cell: {edges}", _cell(kind, cell))


def _kinds(cells: Mapping[str, Cell]) -> list[str]:
    return [kind for kind in COLOURS if kind in cells]


def _size(cell: Cell) -> tuple[int, int]:
    return _x(len(cell) + 1) + 32, _y(len(cell) + 2) + 24


def _x(state: int) -> int:
    """Column of a state: 0 and 1 are the inputs, 2, 3, ... the nodes."""
    return LEFT + INPUT_COLUMN * min(state, 1) + COLUMN * max(state - 1, 0)


def _y(state: int) -> int:
    """Row of a state; both inputs share the first, the output has the one after the last node."""
    return TOP + ROW * max(state - 1, 0)


def _name_x(target: int) -> int:
    """Left side of the names before a node."""
    return _x(target) - RADIUS - ARROW - NAME_WIDTH


def _document(width: int, height: int, label: str, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label={quoteattr(label)} font-family="{FONT}" font-size="13" text-anchor="middle">{body}</svg>'
    )


def _cell(kind: str, cell: Cell) -> str:
    colour, tint = COLOURS[kind], TINTS[kind]
    last = len(cell) + 1
    lines, names = [], []
    for target, node in enumerate(cell, start=2):
        for slot, (operation, source) in enumerate(node):
            y = round(_y(target) + (slot - (len(node) - 1) / 2) * (NAME_HEIGHT + 4))
            lines.append(_edge(int(source), target, y, colour))
            names.append(_name(str(operation), int(source), target, y, colour, tint))
    output = _y(last + 1)
    bus = [f'<path d="M{_x(state)} {_y(state)}V{output}" />' for state in range(2, last + 1)]
    bus.append(f'<path d="M{_x(2)} {output}H{_x(last)}" />')
    return (
        f'<text x="{LEFT - 26}" y="26" font-size="17" font-weight="bold" text-anchor="start" '
        f'fill="currentColor" font-family="system-ui, sans-serif">{kind} cell</text>'
        f'<g fill="none" stroke="#8a929c" stroke-width="1.5" stroke-dasharray="3 4">{"".join(bus)}</g>'
        f'<g fill="none" stroke="{colour}" stroke-width="2">{"".join(lines)}</g>'
        f"{''.join(names)}"
        f"{''.join(_state(state, colour) for state in range(last + 1))}{_box(_x(last), output, 'k')}"
    )


def _edge(source: int, target: int, y: int, colour: str) -> str:
    """From the source down, round a corner, right to the name; from there into the node, where it ends in a dot."""
    x, corner = _x(source), 10
    name = _name_x(target)
    tip_x, tip_y = _x(target) - RADIUS, _y(target) + (y - _y(target)) // 5
    return (
        f'<path d="M{x} {_y(source)}V{y - corner}Q{x} {y} {x + corner} {y}H{name}" />'
        f'<path d="M{name + NAME_WIDTH} {y}L{tip_x} {tip_y}" />'
        f'<circle cx="{tip_x}" cy="{tip_y}" r="3" fill="{colour}" stroke="none" />'
    )


def _name(operation: str, source: int, target: int, y: int, colour: str, tint: str) -> str:
    """An operation's name in two lines on its own ground; pointing at it tells the whole edge."""
    x = _name_x(target)
    first, _, second = operation.rpartition("_")
    rows = [first, second] if first else [second]
    text = "".join(
        f'<text x="{x + NAME_WIDTH // 2}" y="{y + 4.5 + (row - (len(rows) - 1) / 2) * 14:g}">{escape(part)}</text>'
        for row, part in enumerate(rows)
    )
    return (
        f'<g class="operation"><title>{escape(operation)}: {_node_name(source)} to {_node_name(target)}</title>'
        f'<rect x="{x}" y="{y - NAME_HEIGHT // 2}" width="{NAME_WIDTH}" height="{NAME_HEIGHT}" rx="6" fill="{tint}" '
        f'stroke="{colour}" /><g fill="#15202b">{text}</g></g>'
    )


def _state(state: int, colour: str) -> str:
    if state < 2:
        return _box(_x(state), _y(state), f"k-{2 - state}")
    return (
        f'<circle cx="{_x(state)}" cy="{_y(state)}" r="{RADIUS}" fill="{colour}" />'
        f'<text x="{_x(state)}" y="{_y(state) + 5}" fill="#ffffff" font-weight="bold" font-size="15">{state - 2}</text>'
    )


def _box(x: int, y: int, index: str) -> str:
    """An input or the output: c with an index below the line."""
    return (
        f'<rect x="{x - 26}" y="{y - 14}" width="52" height="28" rx="6" fill="#5b6570" />'
        f'<text x="{x}" y="{y + 4}" fill="#ffffff" font-size="14">c<tspan dy="4" font-size="10">{index}</tspan></text>'
    )


def _node_name(state: int) -> str:
    return f"c_{{k-{2 - state}}}" if state < 2 else f"node {state - 2}"
