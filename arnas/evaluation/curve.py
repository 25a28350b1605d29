"""Robust accuracy against epsilon, up to where every image is within reach.

A sample that one epsilon breaks is not attacked again at a larger one, whose ball holds the smaller: it counts as
broken there, too. So the curve cannot rise.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from arnas.evaluation.statistics import Score, score
from arnas.evaluation.units import WRONG


class Point(Score):
    """The accuracy that is left at an epsilon."""

    epsilon: float


def epsilons(epsilon: float, norm: str, shape: Sequence[int]) -> list[float]:
    """The radii of a curve: from a quarter of `epsilon` on, each twice the one before, and last the largest distance.

    Args:
        epsilon: Of the evaluation.
        norm: linf or l2; in l1 there is no curve.
        shape: Of an image, whose pixels are in [0, 1].
    """
    if norm == "l1":
        return []
    largest = math.sqrt(math.prod(shape)) if norm == "l2" else 1.0
    radii, radius = [], epsilon / 4
    while 0 < radius < largest:
        radii.append(radius)
        radius *= 2
    return [*radii, largest]


def points(first: Tensor, radii: Sequence[float]) -> list[Point]:
    """The curve from epsilon 0, without an attack, to the first radius at which no sample is right, or the last.

    Args:
        first: Index in `radii` of the one that broke a sample first, int8 [n], or ROBUST, or WRONG when clean.
    """
    curve: list[Point] = []
    for number, radius in enumerate([0.0, *radii] if len(first) else []):
        left = int(((first != WRONG) & ((first < 0) | (first >= number))).sum())
        curve.append({"epsilon": radius, **score(left, len(first))})
        if not left:
            break
    return curve
