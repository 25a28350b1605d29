import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from arnas.errors import InvalidInput
from arnas.search.combination import combination, min_norm, min_norm_weight

vector = st.lists(st.floats(-100, 100), min_size=4, max_size=4).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def shortest(natural, adversarial):
    """Length of the shortest convex combination, by a numeric minimiser."""
    a, b = natural.numpy(), adversarial.numpy()
    length = lambda gamma: numpy.linalg.norm(gamma * a + (1 - gamma) * b)  # noqa: E731
    inside = minimize_scalar(length, bounds=(0, 1), method="bounded", options={"xatol": 1e-10}).fun
    return min(inside, length(0.0), length(1.0))


@given(vector, vector)
def test_min_norm_is_as_short_as_a_numeric_minimiser_finds(natural, adversarial):
    found = torch.linalg.vector_norm(min_norm(natural, adversarial)).item()
    assert found <= shortest(natural, adversarial) + 1e-6


@given(vector, vector)
def test_min_norm_ascends_neither_objective(natural, adversarial):
    direction = min_norm(natural, adversarial)
    slack = 1e-9 * (1 + direction.dot(direction))
    # the min-norm point's product with every point of the segment is at least its own squared length
    for gradient in (natural, adversarial):
        assert direction.dot(gradient) >= direction.dot(direction) - slack


@given(vector, st.floats(0, 10))
def test_of_parallel_gradients_the_shorter_wins(gradient, factor):
    expected = gradient * min(factor, 1.0)
    torch.testing.assert_close(min_norm(gradient, factor * gradient), expected, atol=1e-6, rtol=1e-6)


@given(vector, st.floats(0.01, 10))
def test_opposite_gradients_cancel(gradient, factor):
    assert torch.linalg.vector_norm(min_norm(gradient, -factor * gradient)) < 1e-6


@given(vector)
def test_equal_gradients_stay_and_zero_stays_zero(gradient):
    assert torch.equal(min_norm(gradient, gradient), gradient)
    zero = torch.zeros_like(gradient)
    for pair in ((gradient, zero), (zero, gradient), (zero, zero)):
        assert torch.equal(min_norm(*pair), zero)


@given(vector, vector)
def test_gamma_is_a_weight(natural, adversarial):
    assert 0 <= min_norm_weight(natural, adversarial) <= 1


def test_min_norm_agrees_with_torchjd():
    from torchjd.aggregation import MGDA

    torch.manual_seed(0)
    for _ in range(20):
        pair = torch.randn(2, 30, dtype=torch.float64)
        # MGDA of torchjd is an iteration, and stops near the point that ours has in closed form
        torch.testing.assert_close(MGDA(epsilon=1e-9, max_iters=1000)(pair), min_norm(*pair), atol=1e-3, rtol=1e-3)


def test_sum_is_the_sum_and_torchjd_is_there_by_name():
    pair = torch.randn(2, 30)
    assert torch.equal(combination("sum")(*pair), pair[0] + pair[1])
    upgrad = combination("UPGrad")(*pair)
    assert all(upgrad.dot(gradient) >= -1e-5 for gradient in pair)


def test_an_unknown_combination_is_refused_with_those_that_exist():
    with pytest.raises(InvalidInput, match=r"'mgda' is unknown.*UPGrad"):
        combination("mgda")


@given(vector, vector)
def test_one_objective_alone_ignores_the_other(natural, adversarial):
    assert torch.equal(combination("natural")(natural, adversarial), natural)
    assert torch.equal(combination("adversarial")(natural, adversarial), adversarial)
