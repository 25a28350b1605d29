"""Accuracies with their uncertainty, and whether they differ by more than chance."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, binomtest, t
from torch import Tensor

from arnas.errors import InvalidInput

_NORMAL_95 = statistics.NormalDist().inv_cdf(0.975)


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


class Paired(TypedDict):
    """Two models on the same samples.

    `first_only` and `second_only`: samples that one alone gets right; `difference`: accuracy of the first less that of
    the second, in [-1, 1], and the ends of its 95% interval; `p` of the hypothesis that both are as accurate.
    """

    first_only: int
    second_only: int
    difference: float
    interval: list[float]
    p: float


def mcnemar(first: Sequence[bool] | Tensor, second: Sequence[bool] | Tensor) -> Paired:
    """McNemar's test in its exact binomial form, two-sided, and an interval of the difference between accuracies.

    Only samples on which the two differ speak for one of them (McNemar 1947, Psychometrika 12). The interval is Agresti
    and Min's for paired proportions (2005, Statistics in Medicine 24, section 4): Wald's after half a sample is added
    to each of the four cells of the table.

    Args:
        first, second: Which samples a model gets right, bool [n], the same samples in the same order.

    Raises:
        InvalidInput: They are not as many, or none.
    """
    one, other = (torch.as_tensor(right, dtype=torch.bool) for right in (first, second))
    if not len(one) or len(one) != len(other):
        raise InvalidInput(
            f"McNemar's test got {len(one)} samples of one model and {len(other)} of the other; give the same of both."
        )
    first_only, second_only = int((one & ~other).sum()), int((other & ~one).sum())
    differing, total = first_only + second_only, len(one) + 2
    middle = (first_only - second_only) / total
    reach = _NORMAL_95 * math.sqrt((differing + 1) / total - middle**2) / math.sqrt(total)
    return {
        "first_only": first_only,
        "second_only": second_only,
        "difference": (first_only - second_only) / len(one),
        "interval": [max(-1.0, middle - reach), min(1.0, middle + reach)],
        "p": float(binomtest(first_only, differing).pvalue) if differing else 1.0,
    }


def holm(ps: Sequence[float]) -> list[float]:
    """p values adjusted for being several, in their order (Holm 1979, Scandinavian Journal of Statistics 6)."""
    adjusted, so_far = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        so_far = max(so_far, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = so_far
    return adjusted


def compared(
    outcomes: Mapping[str, Mapping[str, Any]], questions: Iterable[tuple[str, str, str]]
) -> list[dict[str, Any]]:
    """Several comparisons of two models: McNemar's test of each, and `p_holm` adjusted for all of them together.

    Args:
        outcomes: By model and attack, which samples it gets right, bool [n], all in the same order.
        questions: First model, second model and attack; the samples are those that both met.
    """
    found: list[dict[str, Any]] = []
    for first, second, attack in questions:
        one, other = outcomes[first][attack], outcomes[second][attack]
        both = min(len(one), len(other))
        found.append({"first": first, "second": second, "attack": attack, **mcnemar(one[:both], other[:both])})
    for pair, adjusted in zip(found, holm([pair["p"] for pair in found]), strict=True):
        pair["p_holm"] = adjusted
    return found


class Difference(TypedDict):
    """Whether kinds of cells choose operations differently: the `test` in words, its `statistic` and `p`."""

    test: str
    statistic: float
    p: float
    permutations: int


def kinds_differ(
    operations: Sequence[Mapping[str, Sequence[str]]], permutations: int = 10_000, seed: int = 0
) -> Difference:
    """Test whether cell kinds choose operations differently, over the genotypes of several seeds.

    The statistic is Pearson's chi-square of the table of kinds and operations, counted over all seeds. Its own
    distribution would not do: it takes edges for independent, but those of one cell are chosen together. What can be
    exchanged, if kinds do not matter, are the cells of one genotype. So the statistic is compared with those that come
    from permuting the kinds' names within each seed's genotype, at random; `p` is the share that is no smaller, the
    observed one among them (Phipson and Smyth 2010, Statistical Applications in Genetics 9). A single seed has p = 1.

    Args:
        operations: For each seed, by kind, the names of the operations that the cell's edges chose.
        permutations: How many, 1 or more.
        seed: Of the permutations.

    Raises:
        InvalidInput: There is no genotype, or they have not the same kinds, two or more.
    """
    kinds = sorted(operations[0]) if operations else []
    if len(kinds) < 2 or any(sorted(cells) != kinds for cells in operations):
        raise InvalidInput(
            "Operations are compared between two cell kinds or more, the same in every genotype, but the genotypes "
            f"have {' | '.join(', '.join(cells) for cells in operations) or 'none'}."
        )
    names = sorted({name for cells in operations for chosen in cells.values() for name in chosen})
    counts = np.array([[[cells[kind].count(name) for name in names] for kind in kinds] for cells in operations])
    statistic = _chi_square(counts.sum(0))
    random = np.random.default_rng(seed)
    tables = np.zeros((permutations, len(kinds), len(names)), dtype=np.int64)
    for cells in counts:
        tables += cells[random.permuted(np.tile(np.arange(len(kinds)), (permutations, 1)), axis=1)]
    reached = int((_chi_square(tables) >= statistic - 1e-9).sum())  # equal tables may differ in rounding
    return {
        "test": "permutation of the cell kinds within each seed's genotype, chi-square of kinds and operations",
        "statistic": float(statistic),
        "p": (1 + reached) / (1 + permutations),
        "permutations": permutations,
    }


def _chi_square(tables: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pearson's statistic [...] of tables of counts [..., rows, columns], none of which is empty."""
    rows, columns = tables.sum(-1, keepdims=True), tables.sum(-2, keepdims=True)
    expected = rows * columns / tables.sum((-2, -1), keepdims=True)
    return np.asarray(((tables - expected) ** 2 / expected).sum((-2, -1)))


class Share(TypedDict):
    """How often something was chosen: `share` = `count` / `edges`, and the ends of its 95% interval."""

    count: int
    edges: int
    share: float
    interval: list[float]


def share(counts: Sequence[int], edges: int) -> Share:
    """How often something was chosen in several draws of `edges` choices each, two draws or more.

    The choices of one draw (the edges of a searched cell) depend on one another, so that an interval for independent
    ones would be too narrow. This is Korn and Graubard's (1998, Survey Methodology 24): Clopper and Pearson's exact
    one, for as many independent choices as would vary like the shares of the draws do.

    Args:
        counts: Of each draw, how many of its choices were this one, from 0 to `edges`.
        edges: Choices of one draw.
    """
    draws, total = len(counts), len(counts) * edges
    found = sum(counts) / total
    variance = statistics.variance([count / edges for count in counts]) / draws
    effective = min(total, found * (1 - found) / variance) if variance else total
    effective *= float(t.ppf(0.975, total - 1) / t.ppf(0.975, draws - 1)) ** 2
    chosen, others = effective * found, effective * (1 - found)
    low = float(beta.ppf(0.025, chosen, others + 1)) if chosen else 0.0
    high = float(beta.ppf(0.975, chosen + 1, others)) if others else 1.0
    return {"count": sum(counts), "edges": total, "share": found, "interval": [low, high]}
