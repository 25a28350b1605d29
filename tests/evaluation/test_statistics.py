import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from arnas.evaluation.statistics import score, spread


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_interval_is_wilsons_as_statsmodels_computes_it(counts):
    correct, total = counts
    result = score(correct, total)
    assert result["interval"] == pytest.approx(proportion_confint(correct, total, method="wilson"), abs=1e-9)
    assert result["interval"][0] <= result["accuracy"] == correct / total <= result["interval"][1]
    assert (result["correct"], result["total"]) == counts


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_spread_is_the_sample_standard_deviation_as_numpy_computes_it(figures):
    result = spread(figures)
    assert result["mean"] == pytest.approx(np.mean(figures), abs=1e-12)
    assert result["spread"] == pytest.approx(np.std(figures, ddof=1), abs=1e-12)
    assert (result["lowest"], result["highest"], result["seeds"]) == (min(figures), max(figures), len(figures))
