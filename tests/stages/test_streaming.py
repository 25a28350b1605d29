"""Stages whose images stay in their file do what they do with images on the device."""

import pytest

from arnas import config
from arnas.checkpoints import Keeper
from arnas.data import image_set
from arnas.errors import Interrupted
from arnas.stages import prepare, retrain, search, whitebox

SETTINGS = config.load("smoke")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("smoke") / "images"
    prepare.run(path, SETTINGS.prepare)
    return path


def interrupted(stage, moment, monkeypatch):
    """Run a stage that leaves with its state saved at the given offer to save it."""
    offer, offers = Keeper.offer, 0

    def offer_or_leave(keeper, capture):
        nonlocal offers
        offers += 1
        if offers == moment:
            keeper.save(capture())
            raise Interrupted(keeper.stage, 15)
        offer(keeper, capture)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Keeper, "offer", offer_or_leave)
        stage()


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "artifact.json"}


@pytest.mark.parametrize("name", ["search", "retrain"])
def test_streamed_and_resumed_it_writes_the_bytes_of_a_resident_run(name, images, tmp_path, monkeypatch):
    def run(folder):
        told = {"checkpoints": tmp_path / folder, "device": "cpu"}
        if name == "search":
            return search.run(images, tmp_path / folder / "out", SETTINGS.search, **told)
        recipe = SETTINGS.retrain.model_copy(update={"architecture": "arnas-cifar10", "cutout": 2, "flip": True})
        return retrain.run(images, tmp_path / folder / "out", recipe, name="net", **told)

    resident = run("resident")
    monkeypatch.setattr(image_set, "RESIDENT_SHARE", 0.0)
    for moment in (1, 2):  # amid the first epoch, and in another one
        interrupted(lambda: run("streamed"), moment, monkeypatch)
    assert run("streamed") == resident
    assert contents(tmp_path / "streamed" / "out") == contents(tmp_path / "resident" / "out")


def test_an_evaluation_of_streamed_images_is_that_of_resident_ones(images, tmp_path, monkeypatch, write_model):
    model = write_model("digits", images)
    told = {"checkpoints": tmp_path / "c", "device": "cpu"}
    resident = whitebox.run(model, images, tmp_path / "resident", SETTINGS.whitebox, **told)
    monkeypatch.setattr(image_set, "RESIDENT_SHARE", 0.0)
    told["checkpoints"] = tmp_path / "d"
    assert whitebox.run(model, images, tmp_path / "streamed", SETTINGS.whitebox, **told) == resident
