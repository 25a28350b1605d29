from itertools import pairwise
from xml.etree import ElementTree

import pytest
from reporting.fixtures import score

from arnas.reporting import layouts
from arnas.space.drawing import COLOURS

SVG = "{http://www.w3.org/2000/svg}"


def test_each_cell_is_a_box_in_the_colour_of_its_kind_as_high_as_it_is_wide():
    root = ElementTree.fromstring(layouts.draw("A1 D2 R4"))
    boxes = list(root.iter(f"{SVG}rect"))
    assert [box.get("fill") for box in boxes] == [COLOURS[kind] for kind in ("accurate", "reduce", "robust")]
    assert [text.text for text in root.iter(f"{SVG}text")] == ["A1", "D2", "R4"]
    heights = [int(box.get("height")) for box in boxes]
    assert heights == [layouts.LEAST, layouts.HEIGHT // 2, layouts.HEIGHT]
    assert all(int(box.get("y")) + height == layouts.HEIGHT for box, height in zip(boxes, heights, strict=True))
    assert root.get("aria-label") == "Layout: accurate x1, reduce x2, robust x4"


def test_boxes_stand_side_by_side_within_the_drawing():
    root = ElementTree.fromstring(layouts.draw(" ".join(["A1"] * 20)))
    left = [int(box.get("x")) for box in root.iter(f"{SVG}rect")]
    assert all(one + layouts.CELL < other for one, other in pairwise(left))
    assert left[-1] + layouts.CELL == int(root.get("width"))


def test_drawings_that_share_a_scale_can_be_compared():
    narrow = ElementTree.fromstring(layouts.draw("A2", widest=4))
    assert int(narrow.find(f".//{SVG}rect").get("height")) == layouts.HEIGHT // 2


@pytest.mark.parametrize("right", [[1, 1, 1, 0], [0] * 5, [1] * 5])
def test_a_dot_stands_at_its_accuracy_within_its_interval(right):
    found = score(right)
    root = ElementTree.fromstring(layouts.dots([("clean", "#123456", found)]))
    bar = root.findall(f"{SVG}line")[0]
    place = float(root.find(f"{SVG}circle").get("cx").rstrip("%"))
    low, high = (float(bar.get(end).rstrip("%")) for end in ("x1", "x2"))
    assert place == pytest.approx(100 * found["accuracy"], abs=0.006)
    assert [low, high] == pytest.approx([100 * end for end in found["interval"]], abs=0.006)
    assert 0 <= low <= place <= high <= 100
    assert f"clean {found['accuracy']:.1%}" in root.get("aria-label")
