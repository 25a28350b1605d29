import json
import threading

import pytest
import torch
from safetensors.torch import load_file

from arnas import artifacts, runtime
from arnas.attacks import PGD
from arnas.config import RIVALS, Retrain, genotypes
from arnas.data.image_set import load
from arnas.errors import Diverged, InvalidInput
from arnas.space.network import load_model
from arnas.stages import retrain

SETTINGS = Retrain(
    seed=2, architecture="arnas-cifar10", channels=2, layout="A1 D1 R1", epochs=3, batch_size=60, attack_steps=2,
    selection_steps=3, crop_padding=1, flip=False, cutout=2, drop_path=0.1, weight_averaging=0.5, schedule="cyclic",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """The output of one training, its checkpoints and what it returned."""
    folder = tmp_path_factory.mktemp("retrain")
    checkpoints = folder / "checkpoints"
    return folder, retrain.run(images, folder / "out", SETTINGS, name="net", checkpoints=checkpoints, device="cpu")


def test_the_kept_epoch_is_the_most_robust_on_the_holdout(finished):
    epochs = json.loads((finished[0] / "out" / "history.json").read_text())["epochs"]
    selection = artifacts.read(finished[0] / "out", "model")["content"]["selection"]
    assert [record["epoch"] for record in epochs] == [0, 1, 2]
    assert selection["best"]["robust"] == max(record["robust"] for record in epochs)
    assert selection["last"]["epoch"] == 2
    assert all(record["clean"] >= record["robust"] for record in epochs)


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_stored_weights_have_the_recorded_accuracies_when_loaded_again(finished, images, which):
    network, body = load_model(finished[0] / "out", weights=which)
    data = load(images)
    record = body["content"]["selection"][which]
    pixels, labels = data.batch(data.splits["holdout"])
    right = network(pixels).argmax(-1) == labels
    assert right.float().mean().item() == pytest.approx(record["clean"])
    runtime.seed(2, "retrain", "holdout", record["epoch"])
    attack = PGD(SETTINGS.epsilon, SETTINGS.epsilon / 4, SETTINGS.selection_steps)
    robust = network(attack(network, pixels[right], labels[right])).argmax(-1) == labels[right]
    assert robust.sum().item() / len(labels) == pytest.approx(record["robust"], abs=1.5 / len(labels))


def test_killed_at_several_moments_and_resumed_it_writes_the_same_bytes(finished, images, kill_and_resume):
    output = kill_and_resume("retrain", [images], SETTINGS, kills=[3, 5, 4], name="net")
    for name in ("best.safetensors", "last.safetensors", "history.json"):
        assert (output / name).read_bytes() == (finished[0] / "out" / name).read_bytes()
    assert artifacts.read(output, "model")["digest"] == finished[1]["digest"]


def test_killed_and_its_store_killed_too_it_writes_the_same_bytes(finished, images, kill_and_resume, own_minio):
    store, ended, outages = own_minio.client(), threading.Event(), 0

    def saved():
        return {entry.object_name for entry in store.list_objects("bucket", "prefix/", recursive=True)}

    def kill_store():
        nonlocal outages
        seen = saved()
        while outages < 2 and not ended.wait(0.02):
            if saved() - seen:  # a step was saved: work goes on
                own_minio.kill()
                ended.wait(3)
                own_minio.start()
                seen, outages = saved(), outages + 1

    killer = threading.Thread(target=kill_store)
    killer.start()
    try:
        output = kill_and_resume("retrain", [images], SETTINGS, [3, 5], "s3://bucket/prefix", name="net")
    finally:
        ended.set()
        killer.join()
    assert outages == 2 and (output.parent / "said").read_text().count(" answers again") >= 2
    for name in ("best.safetensors", "last.safetensors", "history.json"):
        assert (output / name).read_bytes() == (finished[0] / "out" / name).read_bytes()
    assert len(saved()) == 1  # the finished work


def test_run_again_it_reuses_all_work(finished, images, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr("arnas.attacks.PGD.__call__")
    checkpoints = finished[0] / "checkpoints"
    returned = retrain.run(images, tmp_path / "out", SETTINGS, name="net", checkpoints=checkpoints, device="cpu")
    assert returned == finished[1] and "reused" in capsys.readouterr().err


def test_training_never_sees_the_test_images(finished, images, tmp_path):
    """With other test images in the set's place, training ends with the same weights."""
    other = tmp_path / "images"
    tensors = load_file(images / "images.safetensors")
    test = tensors["test"]
    tensors["images"][test] = 255 - tensors["images"][test]
    with artifacts.publish(other) as folder:
        folder.mkdir()
        from safetensors.torch import save_file

        save_file(tensors, folder / "images.safetensors")
        artifacts.write(folder, "image_set", artifacts.read(images, "image_set")["content"], {})
    retrain.run(other, tmp_path / "out", SETTINGS, name="net", checkpoints=tmp_path / "c", device="cpu")
    for name in ("best.safetensors", "last.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (finished[0] / "out" / name).read_bytes()


@pytest.mark.parametrize("loss", ["natural", "trades", "mart"])
def test_every_loss_trains_a_baseline(images, tmp_path, loss):
    changes = {"architecture": "resnet18", "channels": 4, "epochs": 4, "batch_size": 30, "attack_steps": 1, "cutout": 0}
    settings = SETTINGS.model_copy(update=changes | {"loss": loss, "weight_averaging": 0.0})
    returned = retrain.run(images, tmp_path / "out", settings, name=loss, checkpoints=tmp_path, device="cpu")
    assert returned["best_clean"] > 0.4  # chance is 0.25
    assert torch.isfinite(load_model(tmp_path / "out")[0](torch.rand(2, 1, 8, 8))).all()


@pytest.mark.parametrize("name", [*RIVALS, *genotypes()])
def test_every_architecture_trains_by_name_and_records_what_it_is(name, images, tmp_path, capsys):
    changes = {"architecture": name, "channels": 2, "epochs": 1, "batch_size": 60, "attack_steps": 1}
    settings = SETTINGS.model_copy(update=changes | {"selection_images": 20, "selection_steps": 1})
    retrain.run(images, tmp_path / "out", settings, name="net", checkpoints=tmp_path / "c", device="cpu")
    network, body = load_model(tmp_path / "out")
    described = body["content"]["network"]
    assert (described["channels"], described["stem_stride"]) == (2, 1)
    assert described["architecture"] == (name if name in RIVALS else "genotype")
    assert torch.isfinite(network(torch.rand(2, 1, 8, 8))).all()
    note = f"{name} has no cells and no auxiliary head; only genotypes heed layout, drop_path."
    assert (note in capsys.readouterr().err) == (name in RIVALS)


@pytest.mark.parametrize(
    ("name", "channels"), [("arnas-cifar10", 64), ("darts-v2", 36), ("resnet18", 64), ("wrn-34-10", 16)]
)
def test_a_width_that_is_not_set_is_the_published_one_in_description_and_key(name, channels, images, monkeypatch):
    asked = {}

    def key(*_, **parts):
        asked.update(parts)
        raise StopIteration

    monkeypatch.setattr(runtime, "key", key)
    settings = Retrain(architecture=name, batch_size=60, cutout=2)
    with pytest.raises(StopIteration):
        retrain.run(images, "out", settings, name="net", checkpoints="unused", device="cpu")
    assert asked["network"]["channels"] == asked["settings"]["channels"] == channels
    assert asked["network"]["stem_stride"] == asked["settings"]["stem_stride"] == 1


def test_a_rival_that_is_given_nothing_for_genotypes_says_nothing():
    assert retrain.unused(Retrain(architecture="resnet18")) is None
    assert retrain.unused(Retrain(architecture="resnet18", auxiliary_weight=0)) is None
    assert retrain.unused(Retrain(architecture="arnas-cifar10", layout="A1")) is None
    sentence = "resnet18 has no cells and no auxiliary head; only genotypes heed auxiliary_weight."
    assert retrain.unused(Retrain(architecture="resnet18", auxiliary_weight=0.2)) == sentence


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_state(images, tmp_path):
    settings = SETTINGS.model_copy(update={"learning_rate": 1e30, "gradient_clip": 1e30})
    with pytest.raises(Diverged, match=r"retrain net: the .* became (nan|inf) at epoch 0, step \d"):
        retrain.run(images, tmp_path / "out", settings, name="net", checkpoints=tmp_path / "c", device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 1000}, "batch_size 1000 is larger than the training set"),
        ({"cutout": 8}, "cutout 8 covers images of 8 pixels"),
        ({"architecture": "searched"}, "needs a genotype file"),
        ({"architecture": "resnet"}, "no genotype 'resnet'"),
        ({"layout": "A1 R1"}, "no reduce cell for an auxiliary head"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_work_starts(images, tmp_path, change, sentence):
    settings = SETTINGS.model_copy(update=change)
    with pytest.raises(InvalidInput, match=sentence):
        retrain.run(images, tmp_path / "out", settings, name="net", checkpoints=tmp_path / "c", device="cpu")
    assert not list(tmp_path.rglob("*.safetensors"))
