from reporting.fixtures import score

from arnas.reporting.table import table


def model(**right):
    return {
        "parameters": 1_234_567,
        "macs": 1,
        **{attack: score([True] * n + [False] * (10 - n)) for attack, n in right.items()},
    }


def test_a_row_gives_percentages_with_their_counts():
    lines = table({"models": {"searched": model(clean=9, fgsm=7, autoattack=5, square=6)}}).splitlines()
    assert lines[0].split() == ["model", "parameters", "clean", "FGSM", "AutoAttack", "Square"]
    assert lines[2].split() == [
        "searched",
        "1,234,567",
        "90.0%",
        "9/10",
        "70.0%",
        "7/10",
        "50.0%",
        "5/10",
        "60.0%",
        "6/10",
    ]


def test_an_attack_that_a_model_did_not_meet_is_a_dash_and_one_that_none_met_has_no_column():
    text = table({"models": {"a": model(clean=9, pgd20=3), "longer-name": model(clean=8)}})
    head, rule, first, second = text.splitlines()
    assert "PGD-20" in head and "PGD-100" not in head
    assert second.endswith("-")
    assert {len(head), len(rule), len(first), len(second)} == {len(rule)}


def test_a_run_without_models_still_has_a_table():
    assert table({"models": {}}).startswith("model  parameters")
