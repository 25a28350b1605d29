import json

import pytest
import torch
from safetensors.torch import load_file

from arnas import artifacts
from arnas.config import Search
from arnas.errors import Diverged, InvalidInput
from arnas.search.loop import COLUMNS
from arnas.space import genotype
from arnas.stages import derive, search

SETTINGS = Search(
    seed=5, channels=2, layout="A1 D1 R1", epochs=2, batch_size=60, attack_steps=1, crop_padding=1, flip=False,
    architecture_learning_rate=0.05,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """The output of one search, its checkpoints and what it returned."""
    folder = tmp_path_factory.mktemp("search")
    return folder, search.run(images, folder / "out", SETTINGS, checkpoints=folder / "checkpoints", device="cpu")


def history(folder):
    return json.loads((folder / "out" / "history.json").read_text())


def test_every_step_and_epoch_is_recorded(finished):
    record = history(finished[0])
    assert record["columns"] == list(COLUMNS)
    assert [row[:2] for row in record["steps"]] == [[epoch, step] for epoch in range(2) for step in range(2)]
    for row in record["steps"]:
        figures = dict(zip(COLUMNS, row, strict=True))
        assert 0 <= figures["gamma"] <= 1
        assert figures["natural_norm"] > 0 and figures["adversarial_norm"] > 0
        assert figures["adversarial_loss"] > figures["natural_loss"]
    for epoch in record["epochs"]:
        for kind, weights in epoch["weights"].items():
            weights = torch.tensor(weights, dtype=torch.float64)
            assert weights.shape == (14, 7) and torch.allclose(weights.sum(-1), torch.ones(14, dtype=torch.float64))
            assert epoch["entropy"][kind] == pytest.approx(
                torch.distributions.Categorical(weights).entropy().mean().item()
            )


def test_the_search_moves_weights_and_architecture_and_ends_with_the_genotype_it_reports(finished):
    body = artifacts.read(finished[0] / "out", "supernet")
    tensors = load_file(finished[0] / "out" / "supernet.safetensors")
    architecture = {
        name.removeprefix("architecture."): t for name, t in tensors.items() if name.startswith("architecture.")
    }
    assert all(alpha.abs().max() > 0.02 for alpha in architecture.values())  # it began at 0.001 x N(0, 1)
    assert (
        genotype.derive(architecture).to_json()
        == body["content"]["genotype"]
        == history(finished[0])["epochs"][-1]["genotype"]
    )


def test_derive_writes_the_genotype_and_its_drawing(finished, tmp_path):
    returned = derive.run(finished[0] / "out", tmp_path / "genotype.json", drawing=tmp_path / "cells.svg")
    found, document = genotype.load(str(tmp_path / "genotype.json"))
    assert found.to_json() == artifacts.read(finished[0] / "out", "supernet")["content"]["genotype"]
    assert artifacts.read(finished[0] / "out", "supernet")["content"]["stem_stride"] == 1
    assert document["layout"] == "A1 D1 R1" and document["origin"]["supernet"] == finished[1]["digest"]
    assert returned["digest"] == document["digest"]
    assert (tmp_path / "cells.svg").read_text().startswith("<svg")


def test_killed_at_several_moments_and_resumed_it_writes_the_same_bytes(finished, images, kill_and_resume):
    output = kill_and_resume("search", [images], SETTINGS, kills=[2, 1, 2])
    for name in ("supernet.safetensors", "history.json"):
        assert (output / name).read_bytes() == (finished[0] / "out" / name).read_bytes()
    assert artifacts.read(output, "supernet")["digest"] == finished[1]["digest"]


def test_another_seed_gives_another_supernet(finished, images, tmp_path):
    settings = SETTINGS.model_copy(update={"seed": 6, "epochs": 1})
    returned = search.run(images, tmp_path / "out", settings, checkpoints=tmp_path, device="cpu")
    assert returned["digest"] != finished[1]["digest"]


def test_run_again_it_reuses_all_work(finished, images, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr("arnas.search.loop.SearchStep.__call__")
    returned = search.run(images, tmp_path / "out", SETTINGS, checkpoints=finished[0] / "checkpoints", device="cpu")
    assert returned == finished[1] and "reused" in capsys.readouterr().err


def test_a_collapse_is_reported(finished, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("arnas.space.genotype.Genotype.skip_connections", lambda self: dict.fromkeys(self.cells, 5))
    settings = SETTINGS.model_copy(update={"epochs": 1})
    search.run(images, tmp_path / "out", settings, checkpoints=tmp_path, device="cpu")
    assert artifacts.read(tmp_path / "out", "supernet")["content"]["collapse"] == [
        f"The {kind} cell collapsed to 5 skip connections of 8 edges." for kind in ("accurate", "robust")
    ]
    assert "warning: The robust cell collapsed" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_search_and_says_where(images, tmp_path):
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30, "gradient_clip": 1e30})
    with pytest.raises(Diverged, match=r"search: the .* became (nan|inf) at epoch 0, step \d"):
        search.run(images, tmp_path / "out", settings, checkpoints=tmp_path / "checkpoints", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 1000}, "batch_size 1000 is larger than a half"),
        ({"crop_padding": 8}, "crop_padding 8"),
        ({"layout": "A1 Z2"}, "'Z2'"),
        ({"combination": "mean"}, "combination 'mean' is unknown"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_work_starts(images, tmp_path, change, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        search.run(
            images, tmp_path / "out", SETTINGS.model_copy(update=change), checkpoints=tmp_path / "c", device="cpu"
        )
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_output_that_cannot_be_written_is_refused_before_work_starts(images, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="cannot be written"):
        search.run(images, tmp_path / "file" / "out", SETTINGS, checkpoints=tmp_path / "c", device="cpu")
    assert not list(tmp_path.rglob("*.safetensors"))
