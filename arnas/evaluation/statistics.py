"""Accuracies with their uncertainty."""

import statistics
from collections.abc import Sequence
from typing import TypedDict

from scipy.stats import binomtest


class Score(TypedDict):
    """An accuracy: `accuracy` = `correct` / `total`, in [0, 1], and the ends of its 95% interval."""

    correct: int
    total: int
    accuracy: float
    interval: list[float]


def score(correct: int, total: int) -> Score:
    """The accuracy over `total` samples, at least one, with Wilson's 95% interval."""
    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return {
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "interval": [float(interval.low), float(interval.high)],
    }


class Spread(TypedDict):
    """How a figure varies between seeds: `spread` is the sample standard deviation, None for a single seed."""

    seeds: int
    mean: float
    spread: float | None
    lowest: float
    highest: float


def spread(figures: Sequence[float]) -> Spread:
    """Mean and spread of one figure over seeds, one or more; never the best of them alone."""
    return {
        "seeds": len(figures),
        "mean": statistics.fmean(figures),
        "spread": statistics.stdev(figures) if len(figures) > 1 else None,
        "lowest": min(figures),
        "highest": max(figures),
    }
