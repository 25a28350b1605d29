"""Stage study: what is said of several variants follows from their artifacts, and from nothing else."""

import csv
import json
import random

import pytest
import torch
from reporting.fixtures import write_run
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests

from arnas import artifacts, config
from arnas.errors import InvalidInput
from arnas.evaluation.statistics import score
from arnas.space.layout import KINDS
from arnas.space.operations import OPERATIONS
from arnas.stages import study

SETTINGS = config.load("smoke")
ATTACKED = {"seed": 0, "norm": "linf", "epsilon": 0.1, "images": 60}


@pytest.fixture
def write(tmp_path):
    """A function of a name: a model and its evaluation, with random cells and outcomes; returns their folders."""

    def write(name, seed=0, architecture="arnas-cifar10", attacked=ATTACKED, images="i", cells=None, **recipe):
        chance = random.Random(seed)
        pick = lambda: [[chance.choice(list(OPERATIONS)), 0], [chance.choice(list(OPERATIONS)), 1]]  # noqa: E731
        network = {
            "architecture": "genotype",
            "cells": cells or {kind: [pick() for _ in range(4)] for kind in KINDS.values()},
            "layout": "A1 D1 R1",
        }
        content = {
            "name": name,
            "network": network,
            "settings": {"architecture": architecture, "seed": seed, "epochs": 2} | recipe,
            "images": images,
            "data": {"dataset": "digits"},
            "parameters": 10,
            "macs": 20,
            "selection": {"best": {"epoch": 1, "clean": 0.5, "robust": 0.25}},
        }
        with artifacts.publish(tmp_path / f"model {name}") as folder:
            folder.mkdir()
            digest = artifacts.write(folder, "model", content, {"seconds": 1.5})
        torch.manual_seed(seed)
        clean, pgd = torch.rand(60) < 0.8, torch.rand(60) < 0.4
        outcomes = {"clean": clean, "pgd20": clean & pgd, "curve_first": torch.zeros(60, dtype=torch.int8)}
        scores = {attack: score(int(outcomes[attack].sum()), 60) for attack in ("clean", "pgd20")}
        content = {"model": name, "model_digest": digest, "images": images, "settings": attacked}
        content |= {"scores": scores, "warnings": [f"a warning of {name}"]}
        with artifacts.publish(tmp_path / f"evaluation {name}") as folder:
            folder.mkdir()
            save_file(outcomes, folder / "outcomes.safetensors")
            artifacts.write(folder, "evaluation", content, {})
        return tmp_path / f"model {name}", tmp_path / f"evaluation {name}"

    return write


def collect(tmp_path, variants, written, name="placement", **more):
    """The study of some variants: what the stage returned, and what it wrote."""
    models, evaluations = zip(*written, strict=True) if written else ((), ())
    returned = study.run(variants, models, evaluations, tmp_path / "s.json", name=name, settings=SETTINGS, **more)
    return returned, json.loads((tmp_path / "s.json").read_text())


def seeds(count):
    return [{"name": f"seed {seed}", "seed": seed} for seed in range(count)]


def outcomes(written):
    return load_file(written[1] / "outcomes.safetensors")


def test_a_row_says_of_each_variant_what_its_artifacts_say_whatever_their_order(write, tmp_path):
    variants = [{"name": "a", "retrain.layout": "A1 D1 R1"}, {"name": "b", "retrain.layout": "R1"}]
    written = [write("a"), write("b", 1)]
    returned, found = collect(tmp_path, variants, [(written[1][0], written[0][1]), (written[0][0], written[1][1])])
    assert [row["name"] for row in found["variants"]] == ["a", "b"]
    assert [row["changes"] for row in found["variants"]] == [{"retrain.layout": "A1 D1 R1"}, {"retrain.layout": "R1"}]
    for row, (model, evaluation) in zip(found["variants"], written, strict=True):
        attacked = artifacts.read(evaluation, "evaluation")
        assert row["scores"] == attacked["content"]["scores"]
        assert (row["model_digest"], row["evaluation_digest"]) == (
            artifacts.read(model, "model")["digest"],
            attacked["digest"],
        )
        assert (row["parameters"], row["macs"], row["dataset"]) == (10, 20, "digits")
        assert row["warnings"] == [f"a warning of {row['name']}"]
    assert returned["a clean"] == found["variants"][0]["scores"]["clean"]["accuracy"]
    assert set(returned) == {"digest", "variants", "a clean", "a pgd20", "b clean", "b pgd20"}
    assert found["accuracy"] is None and found["operations"] is None  # neither seeds nor searches


def test_pairs_are_compared_image_by_image_and_holms_adjustment_is_over_all_of_them(write, tmp_path):
    names = ["a", "b", "c"]
    written = {name: write(name, seed) for seed, name in enumerate(names)}
    _, found = collect(tmp_path, [{"name": name} for name in names], list(written.values()))
    assert len(found["pairs"]) == 6  # three pairs, clean and under the strongest attack
    for pair in found["pairs"]:
        one, other = (outcomes(written[pair[which]])[pair["attack"]] for which in ("first", "second"))
        assert pair["first_only"] == int((one & ~other).sum())
        assert pair["difference"] == pytest.approx(one.float().mean().item() - other.float().mean().item())
        differing = pair["first_only"] + pair["second_only"]
        assert pair["p"] == pytest.approx(binomtest(pair["first_only"], differing).pvalue)
    expected = multipletests([pair["p"] for pair in found["pairs"]], method="holm")[1]
    assert [pair["p_holm"] for pair in found["pairs"]] == pytest.approx(list(expected))


def test_of_many_variants_each_is_compared_with_the_first_alone(write, tmp_path):
    names = [f"v{number}" for number in range(study.EVERY_PAIR + 1)]
    _, found = collect(tmp_path, [{"name": name} for name in names], [write(name, 1) for name in names])
    assert {pair["first"] for pair in found["pairs"]} == {"v0"}
    assert [pair["second"] for pair in found["pairs"] if pair["attack"] == "clean"] == names[1:]


def test_of_many_variants_the_range_is_logged_and_of_few_each_figure(write, tmp_path):
    names = [f"v{number}" for number in range(study.EVERY_PAIR + 1)]
    written = [write(name, seed) for seed, name in enumerate(names)]
    returned, found = collect(tmp_path, [{"name": name} for name in names], written)
    accuracies = [row["scores"]["pgd20"]["accuracy"] for row in found["variants"]]
    assert (returned["pgd20_lowest"], returned["pgd20_highest"]) == (min(accuracies), max(accuracies))
    assert returned["pgd20_mean"] == pytest.approx(sum(accuracies) / len(names)) and "v0 clean" not in returned
    returned, _ = collect(tmp_path, [{"name": name} for name in names[1:]], written[1:])
    assert len(returned) == 2 + 2 * study.EVERY_PAIR and "clean_mean" not in returned


def test_only_what_was_attacked_alike_on_the_same_images_is_compared_in_pairs(write, tmp_path):
    written = [write("a"), write("b", images="j"), write("c", attacked=ATTACKED | {"epsilon": 0.2})]
    written.append(write("d", attacked=ATTACKED | {"seed": 7}))  # chance alone
    _, found = collect(tmp_path, [], written)
    assert {(pair["first"], pair["second"]) for pair in found["pairs"]} == {("a", "d")}
    assert "The networks were not attacked alike: epsilon differ" in " ".join(found["warnings"])
    assert "tested on different images" in " ".join(found["warnings"])


def test_recipes_that_differ_in_more_than_what_is_varied_are_told(write, tmp_path):
    variants = [{"name": "a", "retrain": {"epochs": 2}}, {"name": "b", "retrain": {"epochs": 3}}]
    _, found = collect(tmp_path, variants, [write("a", epochs=2), write("b", epochs=3)])
    assert found["warnings"] == []
    _, found = collect(tmp_path, variants, [write("a", epochs=2, beta=1), write("b", epochs=3, beta=2)])
    assert found["warnings"] == [
        "The networks were not trained under one recipe: beta differ besides what the study varies."
    ]


def test_seeds_have_a_mean_and_a_spread_and_no_best(write, tmp_path):
    written = [write(f"seed {seed}", seed, "searched") for seed in range(5)]
    returned, found = collect(tmp_path, seeds(5), written, "seeds")
    figures = torch.tensor([outcomes(each)["pgd20"].double().mean() for each in written])
    assert found["accuracy"]["pgd20"]["mean"] == pytest.approx(figures.mean().item())
    assert found["accuracy"]["pgd20"]["spread"] == pytest.approx(figures.std().item())
    assert returned["pgd20_mean"] == pytest.approx(figures.mean().item())
    assert found["pairs"] == [] and found["warnings"] == []


def test_a_single_seed_has_no_spread(write, tmp_path):
    _, found = collect(tmp_path, seeds(1), [write("seed 0", 0, "searched")], "seeds")
    assert found["accuracy"] is None and found["operations"] is None and found["pairs"] == []


def test_operations_are_counted_by_kind_over_all_searches(write, tmp_path):
    written = [write(f"seed {seed}", seed, "searched") for seed in range(6)]
    _, found = collect(tmp_path, seeds(6), written, "seeds")
    for kind, operations in found["operations"].items():
        cells = [artifacts.read(model, "model")["content"]["network"]["cells"][kind] for model, _ in written]
        for name, each in operations.items():
            assert each["count"] == str(cells).count(f"'{name}'")
            assert each["edges"] == 6 * 8 and each["share"] == each["count"] / 48
            assert each["interval"][0] <= each["share"] <= each["interval"][1]
    assert found["kinds_differ"]["p"] > 0.01  # the kinds were drawn alike


def test_kinds_that_always_choose_otherwise_are_found_to_differ(write, tmp_path):
    cells = {
        kind: [[[name, 0], [name, 1]]] * 4
        for kind, name in zip(KINDS.values(), ["skip_connect", "avg_pool_3x3", "dil_conv_3x3"], strict=True)
    }
    written = [write(f"seed {seed}", seed, "searched", cells=cells) for seed in range(8)]
    _, found = collect(tmp_path, seeds(8), written, "seeds")
    assert found["kinds_differ"]["p"] < 0.001
    assert found["agreement"] == dict.fromkeys(KINDS.values(), 1.0)  # and all searches agree


def test_agreement_is_the_share_of_equal_edges_at_equal_nodes(write, tmp_path):
    one = {kind: [[["skip_connect", 0], ["avg_pool_3x3", 1]]] * 4 for kind in KINDS.values()}
    nodes = [[["skip_connect", 0], ["skip_connect", 1]]] * 3 + [[["avg_pool_3x3", 1], ["skip_connect", 0]]]
    other = one | {"accurate": nodes}
    written = [write(f"seed {seed}", seed, "searched", cells=cells) for seed, cells in enumerate((one, other))]
    _, found = collect(tmp_path, seeds(2), written, "seeds")
    assert found["agreement"] == {"accurate": 5 / 8, "reduce": 1.0, "robust": 1.0}


def test_genotypes_of_different_searches_are_not_pooled_as_if_they_were_one_search_repeated(write, tmp_path):
    variants = [{"name": name, "search.combination": name} for name in ("natural", "sum")]
    _, found = collect(tmp_path, variants, [write("natural", 0, "searched"), write("sum", 1, "searched")], "ablation")
    assert [found[part] for part in ("operations", "kinds_differ", "agreement")] == [None, None, None]


def test_the_table_has_a_row_for_each_variant_with_counts_and_intervals(write, tmp_path):
    variants = [{"name": "a", "retrain.layout": "A1"}, {"name": "b, too"}]
    _, found = collect(tmp_path, variants, [write("a"), write("b, too", 1)], table=tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(row["name"], row["retrain.layout"]) for row in rows] == [("a", "A1"), ("b, too", "")]
    for row, entry in zip(rows, found["variants"], strict=True):
        for attack, each in entry["scores"].items():
            assert float(row[attack]) == int(row[f"{attack}_correct"]) / int(row[f"{attack}_total"])
            assert [float(row[f"{attack}_low"]), float(row[f"{attack}_high"])] == each["interval"]


def test_the_digest_does_not_depend_on_how_long_it_took(write, tmp_path, monkeypatch):
    written = [write("a")]
    first, _ = collect(tmp_path, [{"name": "a"}], written)
    file = written[0][0] / "artifact.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"origin": {"seconds": 99}}))
    second, _ = collect(tmp_path, [{"name": "a"}], written)
    assert first["digest"] == second["digest"]


def write_blackbox(folder, written, withstood, **content):
    """A black-box evaluation of models that keep, of 60 images, so many right under each attack of another's."""
    bodies = [artifacts.read(model, "model") for model, _ in written]
    names = [body["content"]["name"] for body in bodies]
    keys = {f"transfer/{one}/{other}": other for one in names for other in names} | {
        f"square/{name}": name for name in names
    }
    right = {key: torch.arange(60) < withstood[name] for key, name in keys.items()}
    content = {
        "models": names,
        "settings": {"epsilon": 0.1},
        "images": "i",
        "blackbox": {one: {other: score(withstood[other], 60) for other in names} for one in names},
        "square": {name: score(withstood[name], 60) for name in names},
        "model_digests": {name: body["digest"] for name, body in zip(names, bodies, strict=True)},
    } | content
    with artifacts.publish(folder) as scratch:
        scratch.mkdir()
        save_file(right, scratch / "outcomes.safetensors")
        artifacts.write(scratch, "blackbox", content, {})
    return folder


def test_the_matrix_is_that_of_these_models_with_square_as_one_more_source(write, tmp_path):
    written = [write("a"), write("b", 1)]
    black = write_blackbox(tmp_path / "right", written, {"a": 50, "b": 40})
    _, found = collect(tmp_path, [], written, "comparison", blackbox=black)
    assert found["blackbox"]["square"]["b"]["correct"] == 40 and set(found["blackbox"]) == {"a", "b", "square"}
    wrong = write_blackbox(tmp_path / "wrong", written, {"a": 50, "b": 40}, model_digests={"a": "x", "b": "y"})
    with pytest.raises(InvalidInput, match="wrong is of other models"):
        collect(tmp_path, [], written, "comparison", blackbox=wrong)


def test_a_black_box_stronger_than_the_white_box_is_a_violated_check_that_the_page_begins_with(write, tmp_path):
    written = [write("a"), write("b", 1)]
    black = write_blackbox(tmp_path / "black", written, {"a": 60, "b": 0})
    _, found = collect(tmp_path, [], written, "comparison", blackbox=black, page=tmp_path / "p.html")
    held = {row["name"]: {check["sentence"]: check["holds"] for check in row["checks"]} for row in found["variants"]}
    assert len(held["a"]) == len(held["b"]) == 2  # the other's examples, and Square
    assert all(held["a"].values()) and not any(held["b"].values())
    page = (tmp_path / "p.html").read_text()
    for sentence in held["b"]:
        assert "gradients may be masked" in sentence
        assert page.index(f"<li>b: {sentence}</li>") < page.index("<table")
    assert "<li>a: " not in page[: page.index("<table")]


def test_what_evaluations_found_comes_whole_from_the_artifacts_to_the_page(tmp_path):
    run = write_run(tmp_path / "run")
    files = {"blackbox": run.blackbox, "page": tmp_path / "p.html"}
    _, found = collect(tmp_path, [], list(zip(run.models, run.evaluations, strict=True)), "comparison", **files)
    page = (tmp_path / "p.html").read_text()
    for row, evaluation in zip(found["variants"], run.evaluations, strict=True):
        content = artifacts.read(evaluation, "evaluation")["content"]
        for part in ("scores", "corrupted", "curve", "corruptions", "notes"):
            assert row[part] == content[part]
        assert row["checks"][: len(content["checks"])] == content["checks"]
        first = load_file(evaluation / "outcomes.safetensors")["autoattack_first"]
        broken = row["autoattack_first"]
        assert list(broken) == content["autoattack_parts"]
        assert sum(broken.values()) == int((first >= 0).sum())
        assert "".join(f"<td>{count}</td>" for count in broken.values()) in page
    for heading in ("Which part of AutoAttack broke", "Without an adversary", "Checks for masked gradients"):
        assert page.count(heading) == 1
    assert "Accuracy that PGD-20 leaves as the ball grows" in page


def test_what_does_not_belong_together_is_refused(write, tmp_path):
    first, second = write("a"), write("b", 1)
    cases = [
        ([], [], "The study has the variants none, but the models are of none"),
        ([{"name": "a"}], [first, second], "has the variants a, but the models are of a, b; give one model for each"),
        ([{"name": "a"}, {"name": "c"}], [first, second], "has the variants a, c, but the models are of a, b"),
        ([], [first, first], "Two models are called 'a'"),
        ([], [first, (second[0], first[1])], "is the second one of 'a'; give one for each model"),
        ([], [(first[0], second[1])], "is of a model 'b' that is not here"),
    ]
    for variants, written, sentence in cases:
        with pytest.raises(InvalidInput, match=sentence):
            collect(tmp_path, variants, written)
    assert not (tmp_path / "s.json").exists()
