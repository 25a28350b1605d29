import pytest
from hypothesis import given
from hypothesis import strategies as st

from arnas.errors import InvalidInput
from arnas.space.layout import KINDS, Layout

cells = st.lists(st.tuples(st.sampled_from("ADR"), st.integers(1, 99)), min_size=1, max_size=30)


@given(cells)
def test_a_layout_survives_being_written_and_read(cells):
    layout = Layout(tuple(cells))
    assert Layout.parse(str(layout)) == layout


@pytest.mark.parametrize(("layers", "reductions", "accurate", "robust"), [(20, [6, 13], 12, 6), (8, [2, 5], 4, 2)])
def test_the_papers_placement(layers, reductions, accurate, robust):
    letters = [letter for letter, _ in Layout.paper(layers).cells]
    assert [index for index, letter in enumerate(letters) if letter == "D"] == reductions
    assert (letters.count("A"), letters.count("R")) == (accurate, robust)


def test_the_papers_widths_double_at_the_first_reduction_only():
    assert str(Layout.paper(8)) == "A1 A1 D2 A2 A2 D2 R2 R2"


def test_other_widths_stand_before_between_and_after_the_reductions():
    assert str(Layout.paper(8, (1, 2, 4))) == "A1 A1 D2 A2 A2 D4 R4 R4"


@given(cells, st.integers(1, 16))
def test_every_cell_reads_what_the_cells_before_it_write(cells, channels):
    plan = list(Layout(tuple(cells)).plan(channels))
    outputs = [3 * channels, 3 * channels, *(cell.channels_out for cell in plan)]
    resolutions = [0, 0]  # log2 of the shrinkage of each output, the stem's twice
    for index, (cell, (letter, width)) in enumerate(zip(plan, cells, strict=True)):
        assert (cell.channels_before_last, cell.channels_last) == (outputs[index], outputs[index + 1])
        assert cell.after_reduction == (resolutions[index] != resolutions[index + 1])
        assert (cell.kind, cell.channels) == (KINDS[letter], width * channels)
        resolutions.append(resolutions[-1] + (cell.stride == 2))


@pytest.mark.parametrize("text", ["", "   ", "A", "A0", "B1", "a1", "A1,R1", "A-1", "A1.5", "A100"])
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(InvalidInput, match="layout"):
        Layout.parse(text)
