import json
import shutil
from itertools import combinations

import pytest
from reporting.fixtures import CHANCES, write_run
from safetensors.numpy import load_file

from arnas import artifacts
from arnas.errors import InvalidInput
from arnas.reporting.scores import COLUMNS
from arnas.stages import report


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def finished(written, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    returned = report.run(folder / "report.html", folder / "scores.json", **written.arguments())
    return json.loads((folder / "scores.json").read_text(encoding="utf-8")), returned


def test_scores_are_those_of_the_outcomes_and_square_is_among_them(finished, written):
    scores, _ = finished
    assert list(scores["models"]) == list(CHANCES)
    for name, path in zip(CHANCES, written.evaluations, strict=True):
        entry = scores["models"][name]
        assert [key for key in entry if key in CHANCES[name]] == [
            "clean",
            "fgsm",
            "pgd20",
            "pgd100",
            "autoattack",
            "square",
        ]
        for attack, outcome in load_file(path / "outcomes.safetensors").items():
            if attack in CHANCES[name]:
                assert (entry[attack]["correct"], entry[attack]["total"]) == (int(outcome.sum()), len(outcome))
        assert entry["square"]["total"] == 100
        assert entry["parameters"] > 0 and entry["macs"] > 0 and set(entry["selection"]) == {"best", "last"}


def test_scores_hold_matrix_transfer_settings_versions_data_digests_and_warnings(finished, written):
    scores, _ = finished
    assert set(scores) == {
        "models",
        "pairs",
        "blackbox",
        "transfer",
        "search",
        "settings",
        "versions",
        "data",
        "digests",
        "artifacts",
        "warnings",
    }
    assert {source: list(row) for source, row in scores["blackbox"].items()} == {
        name: list(CHANCES) for name in CHANCES
    }
    assert (
        list(scores["transfer"]) == ["glyphs"]
        and scores["transfer"]["glyphs"]["searched"]["autoattack"]["total"] == 200
    )
    assert scores["settings"]["whitebox"]["epsilon"] == 8 / 255 and "path" not in scores["settings"]["prepare"]
    assert scores["versions"]["torch"] == "2.15.0"
    assert scores["data"]["dataset"] == "digits" and scores["data"]["counts"]["test"] == 360
    assert scores["digests"]["models"]["natural"] == artifacts.read(written.models[2], "model")["digest"]
    assert [warning.split(":")[0] for warning in scores["warnings"]] == ["search", "natural"]


def test_what_is_returned_are_the_digest_of_the_scores_the_best_model_and_all_accuracies(finished):
    scores, returned = finished
    best = max(scores["models"], key=lambda name: scores["models"][name]["autoattack"]["accuracy"])
    assert returned == {
        "digest": artifacts.digest({key: value for key, value in scores.items() if key != "artifacts"}),
        "best": best,
        **{f"{name} {a}": entry[a]["accuracy"] for name, entry in scores["models"].items() for a in COLUMNS},
    }


def test_models_are_compared_on_the_images_that_both_met(finished, written):
    pairs = finished[0]["pairs"]
    right = [load_file(path / "outcomes.safetensors") for path in written.evaluations]
    assert [(pair["first"], pair["second"], pair["attack"]) for pair in pairs] == [
        (*two, attack) for attack in ("clean", "autoattack") for two in combinations(CHANCES, 2)
    ]
    for pair, (one, other) in zip(pairs, [*combinations(right, 2)] * 2, strict=True):
        first, second = one[pair["attack"]], other[pair["attack"]]
        assert (pair["first_only"], pair["second_only"]) == ((first & ~second).sum(), (second & ~first).sum())
        assert pair["p_holm"] >= pair["p"]


def test_a_network_of_others_is_reported_without_its_training(written, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(written.models[0], other)
    body = json.loads((other / "artifact.json").read_text())
    for file in ("artifact.json", "history.json"):
        (other / file).unlink()
    content = body["content"] | {"settings": {}, "selection": None, "network": {"architecture": "program"}}
    artifacts.write(other, "model", content, body["origin"])
    page, scores = tmp_path / "report.html", tmp_path / "scores.json"
    report.run(page, scores, images=written.images, settings=written.settings, models=[other, written.models[1]])
    assert "Training of resnet18" in page.read_text() and "Training of searched" not in page.read_text()
    assert "selection" not in json.loads(scores.read_text())["models"]["searched"]


def test_evaluations_find_their_models_in_any_order(finished, written, tmp_path):
    arguments = written.arguments(evaluations=list(reversed(written.evaluations)))
    returned = report.run(tmp_path / "report.html", tmp_path / "scores.json", **arguments)
    assert returned == finished[1]


def test_images_and_settings_are_enough_for_a_page(written, tmp_path):
    returned = report.run(
        tmp_path / "report.html", tmp_path / "scores.json", images=written.images, settings=written.settings
    )
    assert set(returned) == {"digest"}
    assert "No model has been attacked on digits yet" in (tmp_path / "report.html").read_text()


def refused(written, tmp_path, **changes):
    with pytest.raises(InvalidInput) as caught:
        report.run(tmp_path / "report.html", tmp_path / "scores.json", **written.arguments(**changes))
    assert not list(tmp_path.glob("*.html")) and not list(tmp_path.glob("*.json"))
    return str(caught.value)


def test_an_evaluation_of_a_model_that_is_not_there_is_refused(written, tmp_path):
    message = refused(written, tmp_path, models=written.models[:2], blackbox=None)
    assert "'natural' that is not here" in message


def test_two_evaluations_of_one_model_are_refused(written, tmp_path):
    assert "second one of 'searched'" in refused(written, tmp_path, evaluations=[written.evaluations[0]] * 2)


def test_two_models_of_one_name_are_refused(written, tmp_path):
    assert "Two models are called 'searched'" in refused(written, tmp_path, models=[written.models[0]] * 2)


def test_a_black_box_evaluation_of_other_models_is_refused(written, tmp_path):
    message = refused(written, tmp_path, models=written.models[:2], evaluations=written.evaluations[:2])
    assert "another model 'natural'" in message


def test_evaluations_on_other_images_are_refused(written, tmp_path):
    assert "another image set" in refused(written, tmp_path, images=written.images.parent / "letters")


def test_a_transferred_evaluation_of_another_model_is_refused(written, tmp_path):
    message = refused(written, tmp_path, transfer=(written.models[0], written.transfer[1]))
    assert "not of the transferred model" in message


def test_evaluations_at_different_radii_are_refused(written, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(written.evaluations[2], other)
    body = json.loads((other / "artifact.json").read_text())
    (other / "artifact.json").unlink()
    body["content"]["settings"]["epsilon"] = 4 / 255
    artifacts.write(other, "evaluation", body["content"], body["origin"])
    message = refused(written, tmp_path, evaluations=[written.evaluations[0], other])
    assert "4/255 linf and 8/255 linf" in message


def test_a_damaged_artifact_is_refused(written, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(written.supernet, other)
    (other / "history.json").write_text("{}")
    assert "damaged" in refused(written, tmp_path, supernet=other)
