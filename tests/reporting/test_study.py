import base64
import csv
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reporting.fixtures import STUDIES, score, study
from reporting.test_html import Page, every_score, how_many

from arnas.evaluation.statistics import spread
from arnas.reporting import render
from arnas.reporting.collect import compare
from arnas.reporting.scores import front
from arnas.reporting.study import claim, page, qualification, rows


@pytest.fixture(scope="module")
def pages():
    return {kind: page(study(kind)) for kind in STUDIES}


def ranked(correct, total=500, several=True):
    """A placement study of variants that get so many images right under AutoAttack, the same ones first."""
    found = study("placement")
    right = {name: {"autoattack": np.arange(total) < count} for name, count in correct.items()}
    example = found["variants"][0]
    found["variants"] = [
        example | {"name": name, "scores": {"clean": score([True] * total), "autoattack": score(outcome["autoattack"])}}
        for name, outcome in right.items()
    ]
    return found | {"pairs": compare(right, ["autoattack"]) if several else []}


def test_each_study_is_a_whole_page_that_repeats_itself_letter_by_letter(pages):
    for kind, source in pages.items():
        parsed = Page(source)
        assert len(parsed.ids) == len(set(parsed.ids))
        assert f"<title>ARNAS study: {kind}</title>" in source and page(study(kind)) == source
        assert not re.search(r"\bNone\b|\bnan\b|Undefined", parsed.words.replace("None of", ""))
        assert all(attributes["aria-label"] for tag, attributes in parsed.tags if tag == "svg")
        assert source.count("<figure>") == source.count("<figcaption>")


def test_every_score_of_a_study_stands_in_its_table_and_in_its_csv(pages):
    found = study("comparison")
    lines = list(csv.DictReader(io.StringIO(render.flat(rows(found)))))
    for variant in found["variants"]:
        for attack, entry in variant["scores"].items():
            shown = f"{entry['correct']}/{entry['total']}"
            assert shown in pages["comparison"]
            (line,) = (line for line in lines if (line["model"], line["attack"]) == (variant["name"], attack))
            assert (int(line["correct"]), line["artifact"]) == (entry["correct"], variant["evaluation_digest"])
    told = [(int(line["correct"]), int(line["total"]), float(line["low"]), float(line["high"])) for line in lines]
    assert sorted(told) == sorted(every_score(found))  # the matrix, curves and corruptions among them


def test_all_of_a_study_is_in_a_download_as_csv(pages):
    for kind, source in pages.items():
        text = base64.b64decode(re.findall(r'-all\.csv" href="data:text/csv;base64,([^"]+)"', source)[0]).decode()
        told = [(line["path"], line["value"]) for line in csv.DictReader(io.StringIO(text))]
        assert told == list(render.leaves(json.loads(json.dumps(study(kind))))) and len(told) == how_many(study(kind))


def test_over_seeds_the_claim_is_the_mean_and_never_the_best():
    found = study("seeds")
    accuracies = [variant["scores"]["autoattack"]["accuracy"] for variant in found["variants"]]
    told = claim(found) + qualification(found) + Page(page(found)).words
    assert f"{100 * np.mean(accuracies):.1f}% ± {100 * np.std(accuracies, ddof=1):.1f}% under AutoAttack" in told
    assert "Pareto front" not in told
    single = found | {
        "variants": found["variants"][:1],
        "accuracy": {"clean": spread([0.9]), "autoattack": spread([0.5])},
    }
    assert "±" not in claim(single) and "tells nothing of the spread" in qualification(single)


def test_a_difference_that_chance_explains_is_called_none():
    found = ranked({"one": 300, "two": 303, "three": 305})
    assert "no difference beyond chance was found between any two" in claim(found)
    assert "three keeps" not in claim(found)


def test_the_best_is_named_as_far_as_the_tests_tell_it_from_the_others():
    assert "three keeps 80.0% of 500 test images right under AutoAttack, more than every other layout." in claim(
        ranked({"one": 300, "two": 303, "three": 400})
    )
    told = claim(ranked({"one": 300, "two": 399, "three": 400}))
    assert "more than one; no difference from two was found." in told


def test_without_tests_nothing_is_ranked():
    assert claim(ranked({"one": 1, "two": 400}, several=False)).endswith("; whether they differ was not tested.")


def test_variants_that_were_compared_with_the_first_alone_are_not_said_to_be_beaten():
    found = ranked({"first": 400, "b": 200, "c": 200})
    found["pairs"] = [pair for pair in found["pairs"] if {pair["first"], pair["second"]} == {"first", "b"}]
    assert claim(found).endswith("more than b; 1 was not compared with it.")


def test_figures_of_different_data_sets_are_not_ranked(pages):
    assert "not to be ranked" in pages["transfer"] and "Pareto" not in pages["transfer"]


def test_layouts_are_drawn_beside_their_accuracies_where_they_differ(pages):
    assert len(re.findall(r'aria-label="Layout: ', pages["placement"])) == len(STUDIES["placement"])
    assert "Layout: " not in pages["seeds"] + pages["comparison"]
    for variant in study("placement")["variants"]:
        told = [
            f"{name} {variant['scores'][key]['accuracy']:.1%}"
            for key, name in (("clean", "clean"), ("autoattack", "AutoAttack"))
        ]
        labels = re.findall(r'aria-label="([^"]+)"', pages["placement"])
        assert any(all(text in label for text in told) for label in labels)


def test_of_many_comparisons_those_that_show_something_come_first_and_the_rest_is_folded(pages):
    total = len(study("ablation")["pairs"])
    assert f"The other {total - 10} comparisons" in pages["ablation"]
    better = re.findall(r'<td class="text">(first|second|not shown)</td></tr>', pages["ablation"])
    assert len(better) == total and better == sorted(better, key="not shown".__eq__)


def test_a_violated_check_of_a_variant_comes_before_the_table():
    found = study("comparison")
    sentence = "gradients of this one may be masked."
    found["variants"][1] |= {
        "checks": [{"check": "ladder", "holds": False, "sentence": sentence}],
        "warnings": [sentence],
    }
    source = page(found)
    assert source.index(f"<li>resnet18: {sentence}") < source.index("<table") and source.count("<li>resnet18:") == 1


def test_a_study_before_any_attack_is_a_page_too():
    found = study("placement") | {"pairs": []}
    found["variants"] = [variant | {"scores": {}, "parameters": None, "macs": None} for variant in found["variants"]]
    assert "None of the 4 layouts has been attacked yet" in page(found)


def test_names_are_text_and_not_markup():
    found = ranked({"<i>a</i>": 300, "</script>": 300})
    assert {"<i>a</i>", "</script>"} <= set(Page(page(found)).words.split())
    assert json.loads(json.dumps(found)) == found


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_whoever_is_not_on_the_front_is_beaten_by_someone_on_it_and_nobody_on_it_is(points):
    entries = {
        str(index): {"clean": {"accuracy": clean}, "a": {"accuracy": robust}}
        for index, (clean, robust) in enumerate(points)
    }
    kept = front(entries, "a")

    def beaten(name, by):
        one, other = points[int(name)], points[int(by)]
        return other != one and other[0] >= one[0] and other[1] >= one[1]

    for name in entries:
        assert any(beaten(name, by) for by in kept) == (name not in kept)
    assert [points[int(name)][0] for name in kept] == sorted(points[int(name)][0] for name in kept)
