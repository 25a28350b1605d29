"""What a task says of its artifacts."""

import json
from types import SimpleNamespace

import pytest

from arnas import artifacts, runtime, task
from arnas.config import Prepare
from arnas.space import genotype
from arnas.stages import prepare


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    output = tmp_path_factory.mktemp("images") / "images"
    settings = Prepare(dataset="digits", train_limit=160, test_limit=60, holdout_fraction=0.2, seed=5)
    return output, settings, prepare.run(output, settings)


def test_an_artifact_is_described_by_its_digests_seed_and_versions(images):
    path, settings, figures = images
    output, metrics = SimpleNamespace(path=str(path), metadata={}), SimpleNamespace(path="", metadata={})
    task.record(output, figures, metrics)
    assert output.metadata["digest"] == artifacts.read(path, "image_set")["digest"]
    kept = settings.model_dump(exclude={"path", "download"})
    assert output.metadata["settings"] == artifacts.digest(kept)
    assert json.loads(output.metadata["settings_json"]) == kept
    assert (output.metadata["seed"], output.metadata["kind"]) == (5, "image_set")
    assert f"torch {runtime.versions()['torch']}" in output.metadata["versions"]
    assert metrics.metadata == {name: figure for name, figure in figures.items() if name not in ("digest", "dataset")}


def test_a_genotype_and_the_model_made_of_it_name_the_same_cells(tmp_path):
    cells, document = genotype.load("arnas-cifar10")
    (tmp_path / "genotype.json").write_text(json.dumps(document))
    with artifacts.publish(tmp_path / "model") as folder:
        folder.mkdir()
        artifacts.write(folder, "model", {"network": {"cells": cells.to_json()}, "images": "i"}, {})
    of_file, of_model = task.describe(tmp_path / "genotype.json"), task.describe(tmp_path / "model")
    assert of_file["genotype"] == of_model["genotype"]
    assert of_file["digest"] == document["digest"]
    assert of_model["images"] == "i"


def test_an_evaluation_of_several_models_names_all_of_them(tmp_path):
    digests = {"searched": "d1", "resnet18": "d2"}
    with artifacts.publish(tmp_path / "evaluation") as folder:
        folder.mkdir()
        artifacts.write(folder, "blackbox", {"model_digests": digests}, {})
    assert json.loads(task.describe(tmp_path / "evaluation")["models_json"]) == digests


def test_what_an_artifact_does_not_know_is_left_out(tmp_path):
    (tmp_path / "scores.json").write_text('{"models": {}}')
    assert task.describe(tmp_path / "scores.json") == {}
