import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from arnas.evaluation.statistics import score


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_interval_is_wilsons_as_statsmodels_computes_it(counts):
    correct, total = counts
    result = score(correct, total)
    assert result["interval"] == pytest.approx(proportion_confint(correct, total, method="wilson"), abs=1e-9)
    assert result["interval"][0] <= result["accuracy"] == correct / total <= result["interval"][1]
    assert (result["correct"], result["total"]) == counts
