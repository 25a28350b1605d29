from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reporting.fixtures import score

from arnas import config
from arnas.config import Retrain
from arnas.reporting import words
from arnas.reporting.collect import compare
from arnas.reporting.scores import Run


def a_run(correct, layout=None, total=100, **settings):
    """A run of models that got `correct` images right under AutoAttack, and its scores."""
    body = {
        "content": {
            "settings": Retrain(**settings).model_dump(),
            "network": {"layout": layout},
            "selection": {"best": 1},
        }
    }
    evaluation = {"content": {"settings": {"epsilon": 8 / 255}}}
    run = Run(
        None,
        {},
        None,
        None,
        None,
        {name: body for name in correct},
        {},
        {n: evaluation for n in correct},
        {},
        {},
        None,
        {},
        None,
    )
    outcomes = {name: score([True] * right + [False] * (total - right)) for name, right in correct.items()}
    data = {
        "dataset": "digits",
        "classes": list("0123456789"),
        "shape": [1, 8, 8],
        "counts": {"weights": 600, "architecture": 600, "holdout": 100, "test": 300},
    }
    models = {name: {"clean": score([True] * 300), "autoattack": outcome} for name, outcome in outcomes.items()}
    return run, {"models": models, "data": data}


def test_the_claim_names_the_best_model_its_figures_and_their_counts():
    run, scores = a_run({"weak": 20, "strong": 60})
    assert words.claim(run, scores) == (
        "strong classifies 100.0% of 300 digits test images correctly, and 60.0% of the first 100 "
        "when AutoAttack may change every pixel by up to 8/255."
    )


@pytest.mark.parametrize(("second", "settled"), [(20, True), (40, True), (58, False), (59, False)])
def test_a_model_from_which_the_best_cannot_be_told_on_the_same_images_is_named(second, settled):
    _, scores = a_run({"first": 60, "second": second})
    right = {name: {"autoattack": np.arange(100) < count} for name, count in (("first", 60), ("second", second))}
    scores["pairs"] = compare(right, ["autoattack"])
    assert (scores["pairs"][0]["p"] < 0.05) == settled
    assert ("not shown to be better than second" in words.qualification(scores)) == (not settled)


def test_a_figure_no_better_than_guessing_is_called_no_evidence():
    _, scores = a_run({"model": 12})
    assert "no evidence of robustness" in words.qualification(scores)
    _, scores = a_run({"model": 40})
    assert "no evidence" not in words.qualification(scores)


def test_limits_give_the_width_of_the_widest_interval():
    run, scores = a_run({"model": 50})
    low, high = scores["models"]["model"]["autoattack"]["interval"]
    reach = 100 * max(high - 0.5, 0.5 - low)
    assert "compare down and not across" in " ".join(words.limits(run, scores))  # clean has 300 images
    assert f"With 100 images under AutoAttack an interval reaches up to {reach:.1f} points" in " ".join(
        words.limits(run, scores)
    )


def test_limits_say_what_is_smaller_than_in_the_published_recipe_and_nothing_where_nothing_is():
    assert "recipe: 8 initial filters instead of 64 (m)." in " ".join(words.limits(*a_run({"m": 50}, channels=8)))
    assert "scaled down" not in " ".join(words.limits(*a_run({"m": 50})))
    small = a_run({"m": 50}, "A1 D2 R2", epochs=9)
    assert "recipe: 9 epochs instead of 200, 3 cells instead of 20 (m)." in " ".join(words.limits(*small))


def test_limits_call_small_data_small_and_large_data_not():
    run, scores = a_run({"model": 50})
    assert "1,200 to train on; figures from a data set this small" in words.limits(run, scores)[0]
    scores["data"] |= {"shape": [3, 32, 32], "counts": {"weights": 25_000, "architecture": 25_000}}
    assert words.limits(run, scores)[0].endswith("50,000 to train on.")


def test_one_seed_is_said_and_all_seeds_are_named():
    run, scores = a_run({"a": 50, "b": 50}, seed=3)
    run = replace(
        run, models=run.models | {"b": {"content": {"settings": Retrain(seed=7).model_dump(), "network": {}}}}
    )
    assert "(seed 3, 7)" in " ".join(words.limits(run, scores))


def test_a_training_that_was_not_fp32_is_named_with_its_models():
    run, scores = a_run({"a": 50, "b": 50})
    assert "exact arithmetic" not in " ".join(words.limits(run, scores))
    coarse = {"content": {"name": "c", "settings": Retrain(precision="bf16").model_dump(), "network": {}}}
    run = replace(run, models=run.models | {"b": coarse}, transfer=(coarse, {}))
    (sentence,) = (text for text in words.limits(run, scores) if "exact arithmetic" in text)
    assert sentence.startswith("Not trained in exact arithmetic but in bf16: b, c (transferred). ")
    old = {"content": {"settings": {"seed": 0, "epochs": 1, "channels": 1}, "network": {}}}  # of an earlier version
    run = replace(run, models={"a": old}, transfer=None)
    assert "exact arithmetic" not in " ".join(words.limits(run, scores))


def test_the_claim_names_the_norm_and_the_version_of_autoattack():
    run, scores = a_run({"m": 60})
    settings = {"epsilon": 0.5, "norm": "l2", "autoattack_version": "rand"}
    run = replace(run, evaluations={"m": {"content": {"settings": settings}}})
    assert words.claim(run, scores).endswith("when AutoAttack (rand) may change an image by up to 0.5 in the l2 norm.")
    assert "within this l2 ball" in words.limits(run, scores)[-1]


@given(st.integers(1, 255))
def test_whole_levels_of_255_are_said_as_a_fraction_that_reads_back_exactly(level):
    assert config.intensity(level / 255) == f"{level}/255"
    assert Retrain(epsilon=config.intensity(level / 255)).epsilon == level / 255


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.01, "0.01"), (0.1234567, "0.1235"), (12.0, "12")])
def test_other_intensities_are_said_as_numbers(value, text):
    assert config.intensity(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 0 s"),
        (200.2, "3 min 20 s"),
        (3900, "1 h 5 min"),
        (3599.9, "1 h 0 min"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert words.duration(seconds) == text
