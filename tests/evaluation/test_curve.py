import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arnas.evaluation.curve import epsilons, points


def test_radii_double_from_a_quarter_of_epsilon_to_the_largest_distance_between_images():
    levels = [radius * 255 for radius in epsilons(8 / 255, "linf", (3, 32, 32))]
    assert levels == pytest.approx([2, 4, 8, 16, 32, 64, 128, 255])
    assert epsilons(0.5, "l2", (3, 4, 4)) == pytest.approx([0.125, 0.25, 0.5, 1, 2, 4, math.sqrt(48)])
    assert epsilons(1, "linf", (1, 8, 8)) == [0.25, 0.5, 1]
    assert epsilons(0, "linf", (1, 8, 8)) == [1]
    assert epsilons(12, "l1", (1, 8, 8)) == []


firsts = st.lists(st.integers(-2, 3), min_size=1, max_size=40)


@given(firsts)
def test_a_sample_is_right_until_its_radius_and_the_curve_ends_at_zero(first):
    radii = [0.1, 0.2, 0.4, 1.0]
    curve = points(torch.tensor(first, dtype=torch.int8), radii)
    survived = {-2: 0.0, -1: math.inf, 0: 0.1, 1: 0.2, 2: 0.4, 3: 1.0}  # right below this radius
    for point in curve:
        assert point["correct"] == sum(survived[index] > point["epsilon"] for index in first)
        assert point["total"] == len(first)
    counts = [point["correct"] for point in curve]
    assert counts == sorted(counts, reverse=True) and 0 not in counts[:-1]
    assert counts[-1] == 0 or curve[-1]["epsilon"] == 1
    assert [point["epsilon"] for point in curve] == [0, *radii][: len(curve)]


def test_without_samples_there_is_no_curve():
    assert points(torch.zeros(0, dtype=torch.int8), [0.1, 1.0]) == []
