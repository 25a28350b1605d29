import pyautoattack
import pytest
import torch
from safetensors.torch import load_file

from arnas import artifacts, runtime
from arnas.attacks import FGSM, PGD
from arnas.config import Whitebox
from arnas.data.image_set import load
from arnas.errors import InvalidInput
from arnas.evaluation.whitebox import WhiteboxEvaluation
from arnas.space.network import load_model
from arnas.stages import merge, whitebox

SETTINGS = Whitebox(
    seed=3, epsilon=0.12, step_size=0.03, images=50, autoattack_images=10, block_size=20, batch_size=4, examples=3
)


@pytest.fixture(scope="module")
def finished(models, images, tmp_path_factory):
    """The output of one run, its checkpoints and what it returned."""
    folder = tmp_path_factory.mktemp("whitebox")
    returned = whitebox.run(
        models[0], images, folder / "out", SETTINGS, checkpoints=folder / "checkpoints", device="cpu"
    )
    return folder, returned


def first_test_images(images):
    image_set = load(images)
    return image_set.batch(image_set.splits["test"][:50])


def test_scores_count_the_outcomes_of_the_samples(finished, models):
    folder, returned = finished
    body = artifacts.read(folder / "out", "evaluation")
    outcomes = load_file(folder / "out" / "outcomes.safetensors")
    first = outcomes.pop("autoattack_first")
    scores = body["content"]["scores"]
    assert set(scores) == set(outcomes) == {"clean", "fgsm", "pgd20", "pgd100", "autoattack"}
    for name, right in outcomes.items():
        assert right.dtype == torch.bool and len(right) == (10 if name == "autoattack" else 50)
        assert (scores[name]["correct"], scores[name]["total"]) == (int(right.sum()), len(right))
        assert not (right & ~outcomes["clean"][: len(right)]).any()
        assert returned[name] == scores[name]["accuracy"]
    assert torch.equal(first == -2, ~outcomes["clean"][:10]) and torch.equal(first == -1, outcomes["autoattack"])
    assert scores["clean"]["correct"] > scores["pgd20"]["correct"]
    assert returned["digest"] == body["digest"]
    assert body["content"]["model"] == "a"
    assert body["content"]["model_digest"] == artifacts.read(models[0], "model")["digest"]


def test_outcomes_are_those_of_the_attacks_on_each_block(finished, models, images):
    outcomes = load_file(finished[0] / "out" / "outcomes.safetensors")
    model, _ = load_model(models[0])
    pixels, labels = first_test_images(images)
    clean = model(pixels).argmax(1) == labels
    assert torch.equal(outcomes["clean"], clean)
    fgsm = model(FGSM(0.12)(model, pixels, labels)).argmax(1) == labels
    assert torch.equal(outcomes["fgsm"], clean & fgsm)
    block = torch.arange(20, 40)[clean[20:40]]
    runtime.seed(3, "whitebox", "pgd20", 20)
    with runtime.drawing(20, block - 20):
        pgd = PGD(0.12, 0.03, 20)(model, pixels[block], labels[block])
    assert torch.equal(outcomes["pgd20"][block], model(pgd).argmax(1) == labels[block])


def test_autoattack_is_the_librarys_on_the_block(finished, models, images):
    outcomes = load_file(finished[0] / "out" / "outcomes.safetensors")
    model, _ = load_model(models[0])
    pixels, labels = (part[:10] for part in first_test_images(images))
    runtime.seed(3, "whitebox", "autoattack", 0)
    library = pyautoattack.AutoAttack(model, eps=0.12, seed=torch.initial_seed())
    library.apgd_targeted.n_target_classes = library.fab.n_target_classes = 3
    _, prediction = library.run_standard_evaluation(pixels, labels, batch_size=4)
    assert torch.equal(outcomes["autoattack"], prediction == labels)
    assert 0 < outcomes["autoattack"].sum() < outcomes["clean"][:10].sum()  # all four attacks had work


def test_examples_are_the_first_attacked_images(finished, models, images):
    outcomes = load_file(finished[0] / "out" / "outcomes.safetensors")
    examples = load_file(finished[0] / "out" / "examples.safetensors")
    model, _ = load_model(models[0])
    pixels, labels = first_test_images(images)
    places = outcomes["clean"].nonzero()[:3, 0]
    assert torch.equal(examples["images"], pixels[places]) and torch.equal(examples["labels"], labels[places])
    assert (examples["adversarial"] - examples["images"]).abs().max() <= 0.12 + 1e-6
    assert torch.equal(examples["clean_prediction"], model(examples["images"]).argmax(1))
    assert torch.equal(examples["adversarial_prediction"], model(examples["adversarial"]).argmax(1))
    assert torch.equal(examples["adversarial_prediction"] == examples["labels"], outcomes["pgd20"][places])


def test_killed_at_several_moments_and_resumed_it_writes_the_same_bytes(finished, models, images, kill_and_resume):
    output = kill_and_resume("whitebox", [models[0], images], SETTINGS, kills=[2, 70, 150, 900, 2000])
    assert artifacts.read(output, "evaluation")["digest"] == finished[1]["digest"]
    for name in ("outcomes.safetensors", "examples.safetensors"):
        assert (output / name).read_bytes() == (finished[0] / "out" / name).read_bytes()


@pytest.fixture(scope="module")
def shards(models, images, tmp_path_factory):
    """The three shards of the same evaluation; three blocks of at most 20 samples."""
    folder = tmp_path_factory.mktemp("shards")
    for number in (1, 2, 3):
        whitebox.run(
            models[0],
            images,
            folder / str(number),
            SETTINGS,
            checkpoints=folder / "c",
            device="cpu",
            shard=f"{number}/3",
        )
    return [folder / str(number) for number in (1, 2, 3)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_in_any_order_merge_to_the_bytes_of_one_run(order, finished, shards, tmp_path):
    returned = merge.run([shards[index] for index in order], tmp_path / "out")
    assert returned == finished[1]
    for name in ("outcomes.safetensors", "examples.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (finished[0] / "out" / name).read_bytes()


def test_an_evaluation_of_one_shard_merges_to_itself(finished, tmp_path):
    assert merge.run([finished[0] / "out"], tmp_path / "out") == finished[1]
    assert artifacts.read(tmp_path / "out", "evaluation") == artifacts.read(finished[0] / "out", "evaluation")


def test_more_shards_than_blocks_leave_some_with_nothing_to_do(finished, models, images, tmp_path):
    names = [tmp_path / str(number) for number in range(1, 6)]
    for number, name in enumerate(names, 1):
        whitebox.run(
            models[0], images, name, SETTINGS, checkpoints=tmp_path / "c", device="cpu", shard=f"{number}/{len(names)}"
        )
    assert merge.run(names, tmp_path / "out")["digest"] == finished[1]["digest"]


@pytest.mark.parametrize("chosen", [[], [0, 1], [0, 1, 1], [0, 1, 2, 2]])
def test_a_merge_of_missing_or_double_shards_is_refused(chosen, shards, tmp_path):
    with pytest.raises(InvalidInput, match=r"The shards given are .*; give each of 1/\d to \d/\d once"):
        merge.run([shards[index] for index in chosen], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_of_different_models_are_not_merged(models, images, shards, tmp_path):
    whitebox.run(models[1], images, tmp_path / "b", SETTINGS, checkpoints=tmp_path, device="cpu", shard="3/3")
    with pytest.raises(InvalidInput, match="b is of another model, image set or settings"):
        merge.run([*shards[:2], tmp_path / "b"], tmp_path / "out")


def test_a_shard_alone_is_no_evaluation(shards):
    with pytest.raises(InvalidInput, match="is an evaluation_shard, but an evaluation is needed here"):
        artifacts.read(shards[0], "evaluation")


def test_run_again_it_reuses_all_work(finished, models, images, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(WhiteboxEvaluation, "_batch")
    returned = whitebox.run(
        models[0], images, tmp_path / "out", SETTINGS, checkpoints=finished[0] / "checkpoints", device="cpu"
    )
    assert returned == finished[1] and "reused" in capsys.readouterr().err


def test_autoattack_can_be_left_out_and_then_three_classes_do(write_image_set, write_model, tmp_path):
    images = write_image_set(["zero", "one", "two"])
    model = write_model("three", images)
    settings = SETTINGS.model_copy(update={"autoattack_images": 0, "images": 10, "examples": 0})
    whitebox.run(model, images, tmp_path / "out", settings, checkpoints=tmp_path, device="cpu")
    assert list(artifacts.read(tmp_path / "out", "evaluation")["content"]["scores"]) == [
        "clean",
        "fgsm",
        "pgd20",
        "pgd100",
    ]
    assert len(load_file(tmp_path / "out" / "examples.safetensors")["images"]) == 0
    with pytest.raises(InvalidInput, match="four classes or more, but the model has 3"):
        whitebox.run(model, images, tmp_path / "out", SETTINGS, checkpoints=tmp_path, device="cpu")


def test_a_model_of_other_classes_is_refused(write_image_set, models, tmp_path):
    images = write_image_set(["zero", "one", "two", "three", "four"])
    with pytest.raises(InvalidInput, match=r"4 classes, but the image set has shape \(1, 8, 8\) and 5 classes"):
        whitebox.run(models[0], images, tmp_path / "out", SETTINGS, checkpoints=tmp_path, device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_network_that_hides_its_gradient_is_reported(models, images, tmp_path, monkeypatch, capsys):
    load_plainly = load_model

    def load_rounding(path, device):
        network, body = load_plainly(path, device)
        network.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 8).round() / 8)
        return network, body

    monkeypatch.setattr("arnas.evaluation.models.load_model", load_rounding)
    settings = SETTINGS.model_copy(update={"images": 6, "autoattack_images": 6})
    whitebox.run(models[0], images, tmp_path / "out", settings, checkpoints=tmp_path, device="cpu")
    warnings = artifacts.read(tmp_path / "out", "evaluation")["content"]["warnings"]
    assert any("zero gradient" in warning for warning in warnings)
    assert any("Square broke" in warning for warning in warnings)
    assert "warning: Square broke" in capsys.readouterr().err
