"""Accuracies with their uncertainty."""

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
