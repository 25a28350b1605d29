import re
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arnas.space import drawing, genotype
from arnas.space.operations import OPERATIONS

SVG = "{http://www.w3.org/2000/svg}"
KINDS = ["accurate", "reduce", "robust"]

edges = [st.tuples(st.sampled_from(list(OPERATIONS)), st.integers(0, 1 + node)) for node in range(4)]
cells = st.tuples(*(st.tuples(edge, edge) for edge in edges))


def boxes(group):
    """Left, top, right, bottom of the grounds under the operations' names."""
    found = []
    for operation in group.iter(f"{SVG}g"):
        if operation.get("class") == "operation":
            x, y, w, h = (float(operation.find(f"{SVG}rect").get(key)) for key in ("x", "y", "width", "height"))
            found.append((x, y, x + w, y + h))
    return found


def segments(group):
    """Straight pieces, horizontal and vertical, of all paths: left, top, right, bottom."""
    for path in group.iter(f"{SVG}path"):
        x = y = 0.0
        for letter, numbers in re.findall(r"([MVHQL])([-\d. ]+)", path.get("d")):
            values = [float(number) for number in numbers.split()]
            if letter in "VH":
                new_x, new_y = (values[0], y) if letter == "H" else (x, values[0])
                yield min(x, new_x), min(y, new_y), max(x, new_x), max(y, new_y)
                x, y = new_x, new_y
            else:
                x, y = values[-2:]


def meet(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@given(cells)
@settings(max_examples=100)
def test_names_neither_overlap_nor_leave_the_picture_nor_are_crossed_by_lines(cell):
    root = ElementTree.fromstring(drawing.draw_cell("robust", cell))
    _, _, width, height = map(float, root.get("viewBox").split())
    names = boxes(root)
    assert len(names) == 8
    assert not any(meet(one, other) for one, other in combinations(names, 2))
    assert min(min(name) for name in names) >= 0
    assert all(right <= width and bottom <= height for _, _, right, bottom in names)
    assert not any(meet(line, name) for line in segments(root) for name in names)


@given(cells)
@settings(max_examples=50)
def test_nodes_do_not_overlap_names(cell):
    root = ElementTree.fromstring(drawing.draw_cell("accurate", cell))
    nodes = [tuple(float(c.get(k)) for k in ("cx", "cy", "r")) for c in root.iter(f"{SVG}circle") if c.get("r") == "14"]
    assert len(nodes) == 4
    assert not any(meet((x - r, y - r, x + r, y + r), name) for x, y, r in nodes for name in boxes(root))


def test_the_published_genotype_is_drawn_edge_by_edge():
    cells = genotype.load("arnas-cifar10")[1]["cells"]
    root = ElementTree.fromstring(drawing.draw(cells))
    titles = [title.text for title in root.iter(f"{SVG}title")]
    state = ["c_{k-2}", "c_{k-1}", "node 0", "node 1", "node 2", "node 3"]
    assert titles == [
        f"{operation}: {state[source]} to {state[target]}"
        for kind in KINDS
        for target, node in enumerate(cells[kind], start=2)
        for operation, source in node
    ]
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert [text for text in texts if text.endswith("cell")] == [f"{kind} cell" for kind in KINDS]
    assert all(texts.count(node) == 3 for node in ("ck-2", "ck-1", "0", "1", "2", "3", "ck"))
    assert texts.count("5x5") == sum("5x5" in title for title in titles)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_name_fits_on_its_ground(operation):
    # a letter of a monospaced font is 0.6 of its size wide
    assert max(map(len, operation.rsplit("_", 1))) * 0.61 * 13 <= drawing.NAME_WIDTH


def test_the_drawing_stands_alone_and_can_share_a_page():
    cells = genotype.load("arnas-cifar10")[1]["cells"]
    text = drawing.draw(cells)
    assert text == drawing.draw(cells)
    assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert text.count("://") == 1 and "href" not in text and "<style" not in text and " id=" not in text
    assert ElementTree.fromstring(text).get("aria-label")


def test_each_cell_kind_has_its_colour():
    cells = genotype.load("arnas-cifar10")[1]["cells"]
    for kind in KINDS:
        text = drawing.draw_cell(kind, cells[kind])
        assert [other for other in KINDS if drawing.COLOURS[other] in text] == [kind]


def test_a_screen_reader_hears_every_edge():
    label = ElementTree.fromstring(drawing.draw_cell("reduce", [[["avg_pool_3x3", 1], ["skip_connect", 0]]])).get(
        "aria-label"
    )
    assert label == "The reduce cell: node 0 from c_{k-1} by avg_pool_3x3 and c_{k-2} by skip_connect"
