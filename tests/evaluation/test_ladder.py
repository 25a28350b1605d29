import torch

from arnas.evaluation.ladder import square_doubts, violations


def rights(*counts, total=10):
    """Outcomes in which the first samples are right, as many as said."""
    names = ("clean", "fgsm", "pgd20", "pgd100", "autoattack")
    return {name: torch.arange(total) < count for name, count in zip(names, counts, strict=False)}


def test_a_falling_ladder_is_no_violation():
    assert violations(rights(9, 7, 5, 5, 2)) == []
    assert violations(rights(0, 0, 0, 0, 0)) == []


def test_each_rising_rung_is_one_sentence_with_both_counts():
    one, two = violations(rights(9, 5, 6, 4, 8))
    assert one.startswith("pgd20 leaves 6 of 10 samples right, but the weaker fgsm only 5")
    assert two.startswith("autoattack leaves 8 of 10 samples right, but the weaker pgd100 only 4")
    assert "gradients are masked" in one


def test_autoattack_is_compared_on_the_samples_that_it_saw():
    outcomes = rights(10, 9, 9, 8)
    outcomes["autoattack"] = torch.ones(4, dtype=torch.bool)
    assert violations(outcomes) == []  # 100% of its four, and pgd100 leaves those four right too
    outcomes["pgd100"] = torch.arange(10) >= 2
    (sentence,) = violations(outcomes)
    assert "autoattack leaves 4 of 4" in sentence and "pgd100 only 2" in sentence


def test_without_autoattack_the_rest_is_checked():
    assert len(violations(rights(5, 6, 6, 7))) == 2


def test_square_raises_doubt_where_it_breaks_what_gradients_could_not():
    assert square_doubts(torch.tensor([-2, -1, 0, 1, 2] * 20, dtype=torch.int8)) == []
    first = torch.full((1000,), -1, dtype=torch.int8)
    first[:2] = 3
    assert square_doubts(first) == []
    first[2] = 3
    (sentence,) = square_doubts(first)
    assert "Square broke 3 of 1000" in sentence
    assert square_doubts(first[:0]) == []
