import pytest
import torch

from arnas.config import Whitebox
from arnas.evaluation.checks import (
    autoattack_trusts_itself,
    blackbox_no_stronger,
    not_made,
    restarts_break_little,
    square_breaks_no_more,
    stronger_no_weaker,
    unbounded_breaks_all,
)
from arnas.evaluation.statistics import score


def rights(*counts, total=100):
    """Outcomes in which the first samples are right, as many as said."""
    names = ("clean", "fgsm", "pgd20", "pgd100", "autoattack")
    return {name: torch.arange(total) < count for name, count in zip(names, counts, strict=False)}


def verdicts(checks):
    return [(check["check"], check["holds"]) for check in checks]


def test_on_a_falling_ladder_every_check_holds():
    expected = [("ladder", True), ("ladder", True), ("more steps", True), ("ladder", True)]
    assert verdicts(stronger_no_weaker(rights(90, 70, 50, 50, 20))) == expected
    assert verdicts(stronger_no_weaker(rights(0, 0, 0, 0, 0))) == expected


def test_a_rising_rung_is_a_violation_with_both_counts():
    first, second, third, fourth = stronger_no_weaker(rights(90, 50, 60, 40, 80))
    assert [check["holds"] for check in (first, second, third, fourth)] == [True, False, True, False]
    assert second["sentence"] == (
        "pgd20 leaves 60 of 100 samples right, fgsm, which should be weaker, 50: gradients may be masked."
    )
    assert "autoattack leaves 80 of 100 samples right, pgd100, which should be weaker, 40" in fourth["sentence"]


def test_more_steps_that_break_less_are_their_own_check():
    checks = stronger_no_weaker(rights(90, 70, 50, 60, 20))
    assert [check["check"] for check in checks if not check["holds"]] == ["more steps"]


def test_a_few_samples_more_are_chance_and_each_sample_counts_for_itself():
    assert all(check["holds"] for check in stronger_no_weaker(rights(90, 50, 55)))  # 5 of 5: p = 0.0625
    assert not all(check["holds"] for check in stronger_no_weaker(rights(90, 50, 56)))
    outcomes = rights(90, 50)
    outcomes["pgd20"] = torch.arange(100) >= 44  # 6 more, of 94 on which the two differ
    assert all(check["holds"] for check in stronger_no_weaker(outcomes))


def test_attacks_are_compared_on_the_samples_that_both_saw():
    outcomes = rights(100, 90, 90, 80)
    outcomes["autoattack"] = torch.ones(20, dtype=torch.bool)
    assert all(check["holds"] for check in stronger_no_weaker(outcomes))  # all of its 20, and pgd100's 20 too
    outcomes["pgd100"] = torch.arange(100) >= 10
    last = stronger_no_weaker(outcomes)[-1]
    assert not last["holds"] and "autoattack leaves 20 of 20" in last["sentence"] and "weaker, 10" in last["sentence"]


def test_what_was_not_run_is_not_checked():
    assert len(stronger_no_weaker(rights(5, 6, 6, 7))) == 3
    only = {name: right for name, right in rights(90, 0, 0, 0, 80).items() if name in ("clean", "autoattack")}
    assert verdicts(stronger_no_weaker(only)) == [("ladder", True)]


@pytest.mark.parametrize(("parts", "square"), [(("a", "b", "c", "square"), 3), (("a", "square", "b"), 1)])
def test_square_raises_doubt_where_it_breaks_what_gradients_could_not(parts, square):
    others = [index for index in range(len(parts)) if index != square]
    assert verdicts(square_breaks_no_more(torch.tensor([-2, -1, *others] * 20, dtype=torch.int8), parts)) == [
        ("square", True)
    ]
    first = torch.full((1000,), -1, dtype=torch.int8)
    first[:5] = square  # P(5 or more of 1000 at 0.2%) = 0.053
    assert square_breaks_no_more(first, parts)[0]["holds"]
    first[5] = square
    (check,) = square_breaks_no_more(first, parts)
    assert not check["holds"] and "Square broke 6 of 1000" in check["sentence"]
    one_of_60 = torch.tensor([square] + [-1] * 59, dtype=torch.int8)
    assert square_breaks_no_more(one_of_60, parts)[0]["holds"]


def test_without_square_or_without_samples_there_is_nothing_to_say_of_it():
    assert square_breaks_no_more(torch.zeros(5, dtype=torch.int8), ("apgd-ce", "apgd-dlr")) == []
    assert square_breaks_no_more(torch.zeros(0, dtype=torch.int8), ("square",)) == []


@pytest.mark.parametrize(("broken", "total", "holds"), [(0, 4, True), (1, 20, True), (3, 20, False), (20, 1000, True)])
def test_restarts_may_break_as_much_as_chance_and_a_fiftieth(broken, total, holds):
    first = torch.full((total,), -2, dtype=torch.int8)
    first[:broken] = torch.arange(broken) % 5
    (check,) = restarts_break_little(first)
    assert check["holds"] == holds
    assert f"5 more random starts of PGD-20 broke {broken} of {total} samples" in check["sentence"]
    assert restarts_break_little(first[:0]) == []


def test_what_autoattack_warns_of_is_a_violation_each():
    warning = "AutoAttack: there are points with zero gradient! This might lead to unreliable evaluation."
    first, second = autoattack_trusts_itself(["b!", warning], ("square",))
    assert not first["holds"] and first["sentence"] == f"{warning[:-1]}: gradients may be masked."
    assert not second["holds"] and second["sentence"] == "b: gradients may be masked."
    assert verdicts(autoattack_trusts_itself([], ("square",))) == [("autoattack", True)]
    assert autoattack_trusts_itself([], ()) == []


@pytest.mark.parametrize(
    ("changes", "checks"),
    [
        ({}, []),
        ({"curve_images": 0}, ["The checks restarts and unbounded epsilon are"]),
        ({"autoattack_images": 0}, ["The checks square and autoattack are"]),
        ({"autoattack_version": "rand"}, ["The check square is"]),
        ({"norm": "l2", "epsilon": 0.5}, ["The check black box is"]),
        (
            {"norm": "l1", "epsilon": 12},
            ["so the checks more steps, restarts and unbounded epsilon are", "The check black box is"],
        ),
    ],
)
def test_a_check_that_is_not_made_is_named(changes, checks):
    notes = not_made(Whitebox(**changes).model_dump())
    assert len(notes) == len(checks)
    for note, begin in zip(notes, checks, strict=True):
        assert f"{begin} not made" in note and "because" in note


def test_the_curve_must_come_to_zero():
    curve = [{"epsilon": 0.0, **score(9, 10)}, {"epsilon": 0.5, **score(0, 10)}]
    assert verdicts(unbounded_breaks_all(curve)) == [("unbounded epsilon", True)]
    (check,) = unbounded_breaks_all([*curve[:1], {"epsilon": 1.0, **score(1, 10)}])
    assert not check["holds"] and "1 of 10 samples right at epsilon 1:" in check["sentence"]
    assert unbounded_breaks_all([]) == []


def black(name="b", epsilon=0.1, images="digest", model="of a"):
    outcomes = {f"transfer/{source}/a": torch.arange(60) < 40 for source in ("a", name)}
    outcomes |= {"square/a": torch.arange(30) < 10, f"square/{name}": torch.zeros(30, dtype=torch.bool)}
    content = {"models": ["a", name], "model_digests": {"a": model, name: "of b"}, "images": images}
    return content | {"settings": {"epsilon": epsilon}}, outcomes


def white(norm="linf"):
    content = {"model": "a", "model_digest": "of a", "images": "digest", "settings": {"norm": norm, "epsilon": 0.1}}
    return content, {"clean": torch.ones(100, dtype=torch.bool), "pgd20": torch.arange(100) < 20}


def test_what_breaks_more_without_seeing_the_model_is_a_violation():
    transfer, square = blackbox_no_stronger(*white(), *black())
    assert (transfer["check"], transfer["holds"], square["holds"]) == ("black box", True, False)
    assert transfer["sentence"].startswith("pgd20 leaves 20 of 60 samples right, transfer from b, which should be weak")
    assert square["sentence"].startswith(
        "pgd20 leaves 20 of 30 samples right, square, which should be weaker, 10: grad"
    )


def test_arrays_do_as_well_as_tensors_and_the_longest_pgd_is_compared():
    (content, outcomes), (blackbox, blind) = white(), black()
    outcomes["pgd100"] = torch.arange(100) < 5
    arrays = ({name: right.numpy() for name, right in each.items()} for each in (outcomes, blind))
    checks = blackbox_no_stronger(content, next(arrays), blackbox, next(arrays))
    assert verdicts(checks) == [("black box", True)] * 2 and checks[1]["sentence"].startswith("pgd100 leaves 5 of 30")


@pytest.mark.parametrize("other", [{"epsilon": 0.2}, {"images": "others"}, {"model": "of another a"}])
def test_attacks_on_another_model_other_images_or_in_another_ball_are_not_compared(other):
    assert blackbox_no_stronger(*white(), *black(**other)) == []
    assert blackbox_no_stronger(*white("l2"), *black()) == []
