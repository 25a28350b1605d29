import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chi2_contingency, kstest, multinomial, norm
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from arnas.errors import InvalidInput
from arnas.evaluation.statistics import holm, kinds_differ, mcnemar, score, share, spread


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


pairs = st.integers(1, 200).flatmap(
    lambda total: st.tuples(*(st.lists(st.booleans(), min_size=total, max_size=total) for _ in range(2)))
)


@given(pairs)
def test_mcnemars_p_is_the_exact_one_of_statsmodels(pair):
    first, second = (np.array(right) for right in pair)
    found = mcnemar(*pair)
    table = [[(first & second).sum(), (first & ~second).sum()], [(~first & second).sum(), (~first & ~second).sum()]]
    assert (found["first_only"], found["second_only"]) == (table[0][1], table[1][0])
    assert found["p"] == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue, abs=1e-12)
    assert found["difference"] == pytest.approx(first.mean() - second.mean(), abs=1e-12)
    assert mcnemar(torch.tensor(first), torch.tensor(second)) == found


@given(pairs)
def test_the_interval_is_walds_with_half_a_sample_more_in_each_cell(pair):
    values = np.array(pair, dtype=float)
    cells = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=float)
    difference = np.concatenate([values, cells], 1)
    difference = difference[0] - difference[1]
    weights = np.r_[np.ones(values.shape[1]), np.full(4, 0.5)]
    mean = np.average(difference, weights=weights)
    deviation = np.average((difference - mean) ** 2, weights=weights) ** 0.5
    expected = norm.interval(0.95, mean, deviation / weights.sum() ** 0.5)
    assert mcnemar(*pair)["interval"] == pytest.approx(np.clip(expected, -1, 1), abs=1e-9)


@pytest.mark.parametrize("total", [20, 60])
@pytest.mark.parametrize(("first_only", "second_only"), [(0.05, 0.05), (0.1, 0.05), (0.3, 0.1), (0.02, 0.01)])
def test_the_interval_holds_the_true_difference_in_95_of_100_cases(total, first_only, second_only):
    counts = np.array([(b, c) for b in range(total + 1) for c in range(total + 1 - b)])
    cells = np.column_stack([counts, total - counts.sum(1)])
    chances = multinomial.pmf(cells, total, [first_only, second_only, 1 - first_only - second_only])
    likely = chances > 1e-9
    truth, covered = first_only - second_only, 0.0
    for (b, c), chance in zip(counts[likely].tolist(), chances[likely], strict=True):
        first = np.arange(total) < b
        second = (np.arange(total) >= b) & (np.arange(total) < b + c)
        low, high = mcnemar(first, second)["interval"]
        covered += chance * (low <= truth <= high)
    assert covered >= 0.94  # exact coverage, not a simulation; it is conservative where few samples differ


def test_the_same_samples_are_needed_of_both_models():
    with pytest.raises(InvalidInput, match="2 samples of one model and 1 of the other"):
        mcnemar([True, False], [True])
    with pytest.raises(InvalidInput, match="0 samples of one"):
        mcnemar([], [])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holms_p_values_are_those_of_statsmodels(ps):
    assert holm(ps) == pytest.approx(multipletests(ps, method="holm")[1], abs=1e-12)


def test_of_no_p_values_none_are_adjusted():
    assert holm([]) == []


KINDS, NAMES = ("accurate", "reduce", "robust"), ("skip", "sep3", "sep5", "dil3")


def genotypes(seed, count, likes=None):
    """Genotypes that choose an operation for a cell at random and then mostly stay with it, whatever the kind."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        cells = {}
        for kind in KINDS:
            favourite = (likes or {}).get(kind) or random.choice(NAMES)
            cells[kind] = [favourite if random.random() < 0.7 else str(random.choice(NAMES)) for _ in range(8)]
        found.append(cells)
    return found


def test_without_a_difference_between_kinds_p_is_uniform_though_edges_of_a_cell_depend_on_each_other():
    found = [kinds_differ(genotypes(seed, 10), 199, seed) for seed in range(300)]
    assert kstest([entry["p"] for entry in found], "uniform").pvalue > 0.01
    naive = [chi2.sf(entry["statistic"], 6) for entry in found]  # as if edges were independent
    assert np.mean(np.array(naive) < 0.05) > 0.3


def test_a_kind_that_prefers_an_operation_is_found():
    found = kinds_differ(genotypes(0, 10, {"robust": "dil3"}))
    assert found["p"] < 0.01 and found["permutations"] == 10_000
    assert "permutation" in found["test"]


def test_the_statistic_is_scipys_and_the_permutations_are_those_of_the_seed():
    cells = genotypes(3, 7)
    table = [[sum(each[kind].count(name) for each in cells) for name in NAMES] for kind in KINDS]
    found = kinds_differ(cells, 500, 1)
    assert found["statistic"] == pytest.approx(chi2_contingency(table).statistic, rel=1e-12)
    assert found == kinds_differ([{kind: each[kind] for kind in reversed(KINDS)} for each in cells], 500, 1)
    assert found["p"] != kinds_differ(cells, 500, 2)["p"]


def test_one_genotype_or_one_operation_proves_nothing():
    assert kinds_differ(genotypes(0, 1, {"robust": "dil3"}))["p"] == 1
    same = kinds_differ([dict.fromkeys(KINDS, ["skip"] * 8)] * 5)
    assert (same["statistic"], same["p"]) == (0, 1)


@pytest.mark.parametrize("cells", [[], [{"accurate": ["skip"]}], [{"a": ["skip"], "b": ["skip"]}, {"a": ["skip"]}]])
def test_kinds_are_compared_where_there_are_two_in_every_genotype(cells):
    with pytest.raises(InvalidInput, match="two cell kinds or more"):
        kinds_differ(cells)


def test_a_share_whose_draws_vary_as_independent_choices_do_has_the_exact_interval_but_for_the_fewer_draws():
    counts = [4, 2, 5, 3, 6, 4, 3, 5] * 5  # of 10, and less spread than binomial: no more choices than there are
    found = share(counts, 10)
    assert (found["count"], found["edges"], found["share"]) == (sum(counts), 400, sum(counts) / 400)
    effective = 400 * (student.ppf(0.975, 399) / student.ppf(0.975, 39)) ** 2
    expected = proportion_confint(found["share"] * effective, effective, method="beta")
    assert found["interval"] == pytest.approx(expected, abs=1e-9)


def test_the_interval_of_a_share_covers_it_where_the_choices_of_a_draw_are_all_the_same():
    random, covered, naive = np.random.default_rng(0), 0, 0
    for _ in range(300):
        counts = 8 * (random.random(20) < 0.3)  # twenty draws of eight choices that agree
        low, high = share(counts.tolist(), 8)["interval"]
        covered += low <= 0.3 <= high
        low, high = proportion_confint(counts.sum(), 160, method="wilson")
        naive += low <= 0.3 <= high
    assert covered >= 0.95 * 300 > 0.8 * 300 > naive


def test_what_was_never_or_always_chosen_has_an_interval_that_ends_there():
    assert share([0] * 5, 8)["interval"][0] == 0 < share([0] * 5, 8)["interval"][1]
    assert share([8] * 5, 8)["interval"][1] == 1 > share([8] * 5, 8)["interval"][0]
