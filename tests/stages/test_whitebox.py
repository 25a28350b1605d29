import re

import pyautoattack
import pytest
import torch
from safetensors.torch import load_file

from arnas import artifacts, runtime
from arnas.attacks import FGSM, PGD
from arnas.attacks.autoattack import PARTS
from arnas.config import Whitebox
from arnas.data.image_set import load
from arnas.errors import InvalidInput
from arnas.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from arnas.evaluation.curve import epsilons
from arnas.evaluation.units import Shard
from arnas.evaluation.whitebox import WhiteboxEvaluation
from arnas.space.network import load_model
from arnas.stages import merge, whitebox

SETTINGS = Whitebox(
    seed=3,
    epsilon=0.12,
    step_size=0.03,
    images=50,
    autoattack_images=10,
    curve_images=24,
    corruption_images=30,
    block_size=20,
    batch_size=4,
    examples=3,
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
    first, *_ = (outcomes.pop(f"{series}_first") for series in ("autoattack", "curve", "restarts"))
    assert body["content"]["autoattack_parts"] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert outcomes.pop("corruptions").shape == (30, 4, 5)
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


def test_the_curve_is_pgd20_at_each_epsilon_on_what_the_smaller_ones_left(finished, models, images):
    content = artifacts.read(finished[0] / "out", "evaluation")["content"]
    outcomes = load_file(finished[0] / "out" / "outcomes.safetensors")
    model, _ = load_model(models[0])
    pixels, labels = first_test_images(images)
    curve, first = content["curve"], outcomes["curve_first"]
    radii = epsilons(0.12, "linf", (1, 8, 8))
    assert [point["epsilon"] for point in curve] == [0, *radii][: len(curve)] and len(first) == 24
    assert curve[0]["correct"] == int(outcomes["clean"][:24].sum()) and curve[-1]["correct"] == 0
    left = outcomes["clean"][:20].nonzero()[:, 0]
    for index, radius in enumerate(radii):
        if len(left):
            runtime.seed(3, "whitebox", f"curve-{index}", 0)
            with runtime.drawing(20, left):
                adversarial = PGD(radius, radius / 4, 20)(model, pixels[left], labels[left])
            broken = model(adversarial).argmax(1) != labels[left]
            assert torch.equal(broken, first[left] == index)
            left = left[~broken]
    assert not len(left)


def test_more_starts_are_tried_where_the_first_failed(finished):
    outcomes = load_file(finished[0] / "out" / "outcomes.safetensors")
    first = outcomes["restarts_first"]
    assert torch.equal(first == -2, ~outcomes["pgd20"][:24]) and (first == -1).any() and first.max() < 5


def test_corruptions_are_seen_by_all_images_each_with_its_own_noise(finished, models, images):
    content = artifacts.read(finished[0] / "out", "evaluation")["content"]
    right = load_file(finished[0] / "out" / "outcomes.safetensors")["corruptions"]
    model, _ = load_model(models[0])
    pixels, labels = first_test_images(images)
    for kind, name in enumerate(CORRUPTIONS):
        for severity in SEVERITIES:
            runtime.seed(3, "whitebox", f"{name}-{severity}", 20)
            with runtime.drawing(20, torch.arange(10)):
                corrupted = corrupt(name, pixels[20:30], severity)
            assert torch.equal(right[20:, kind, severity - 1], model(corrupted).argmax(1) == labels[20:30])
    assert content["corruptions"]["jpeg"]["5"]["correct"] == int(right[:, 3, 4].sum())
    assert content["corrupted"]["accuracy"] == finished[1]["corrupted"] == right.double().mean().item()


def test_the_checks_are_in_the_evaluation_and_a_sound_network_passes_them(finished):
    content = artifacts.read(finished[0] / "out", "evaluation")["content"]
    assert [check["check"] for check in content["checks"]] == [
        *("ladder", "ladder", "more steps", "ladder", "restarts", "unbounded epsilon", "square", "autoattack"),
    ]
    assert all(check["holds"] for check in content["checks"]) and content["warnings"] == content["notes"] == []


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


@pytest.mark.parametrize(
    ("counts", "kills", "amid"),
    [
        ({"curve_images": 20, "corruption_images": 0}, [600, 200], {"curve", "restarts"}),
        ({"curve_images": 0, "corruption_images": 20}, [575, 40], set(CORRUPTIONS)),
    ],
)
def test_killed_amid_what_follows_the_attacks_it_writes_the_same_bytes(
    counts, kills, amid, models, images, tmp_path, kill_and_resume
):
    settings = SETTINGS.model_copy(update={"autoattack_images": 0, "images": 20, **counts})
    expected = whitebox.run(models[0], images, tmp_path / "whole", settings, checkpoints=tmp_path / "c", device="cpu")
    output = kill_and_resume("whitebox", [models[0], images], settings, kills)
    state = WhiteboxEvaluation.begin(load(images), settings)
    units = WhiteboxEvaluation(torch.nn.Identity(), load(images), settings, state).units(Shard())
    resumed = re.findall(r"goes on after (\d+) of", (tmp_path / "said").read_text())
    assert amid & {units[int(done)].run.args[1] for done in resumed}
    assert artifacts.read(output, "evaluation")["digest"] == expected["digest"]
    assert (output / "outcomes.safetensors").read_bytes() == (tmp_path / "whole/outcomes.safetensors").read_bytes()


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
    settings = SETTINGS.model_copy(
        update={"autoattack_images": 0, "curve_images": 0, "corruption_images": 0, "images": 10, "examples": 0}
    )
    whitebox.run(model, images, tmp_path / "out", settings, checkpoints=tmp_path, device="cpu")
    content = artifacts.read(tmp_path / "out", "evaluation")["content"]
    assert list(content["scores"]) == ["clean", "fgsm", "pgd20", "pgd100"]
    assert (content["curve"], content["corruptions"], content["corrupted"], content["autoattack_parts"]) == (
        *([], {}, None, []),
    )
    assert {check["check"] for check in content["checks"]} == {"ladder", "more steps"}
    assert [note.partition(" not made")[0] for note in content["notes"]] == [
        "The checks restarts and unbounded epsilon are",
        "The checks square and autoattack are",
    ]
    assert set(load_file(tmp_path / "out" / "outcomes.safetensors")) == set(content["scores"])
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
    settings = SETTINGS.model_copy(update={"images": 6, "autoattack_images": 6, "corruption_images": 0})
    whitebox.run(models[0], images, tmp_path / "out", settings, checkpoints=tmp_path, device="cpu")
    content = artifacts.read(tmp_path / "out", "evaluation")["content"]
    warnings = content["warnings"]
    assert {"square", "autoattack"} <= {check["check"] for check in content["checks"] if not check["holds"]}
    assert any("zero gradient" in warning for warning in warnings)
    assert any("Square broke" in warning for warning in warnings)
    assert "warning: Square broke" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["plus", "rand"])
def test_the_other_versions_of_autoattack_name_their_parts(version, models, images, tmp_path):
    update = {"images": 2, "autoattack_version": version, "curve_images": 0, "corruption_images": 0}
    whitebox.run(
        models[0], images, tmp_path / "out", SETTINGS.model_copy(update=update), checkpoints=tmp_path, device="cpu"
    )
    content = artifacts.read(tmp_path / "out", "evaluation")["content"]
    assert content["autoattack_parts"] == list(PARTS[version])
    outcomes = load_file(tmp_path / "out" / "outcomes.safetensors")
    assert outcomes["autoattack_first"].max() < len(PARTS[version])
    assert content["scores"]["autoattack"]["correct"] <= content["scores"]["pgd100"]["correct"]


def test_in_l2_all_attacks_are_made_and_in_l1_autoattack_alone(models, images, tmp_path):
    update = {"images": 6, "autoattack_images": 1, "examples": 1, "epsilon": 1.5, "step_size": 0.4}
    contents = {}
    for norm in ("l2", "l1"):
        settings = SETTINGS.model_copy(update={**update, "norm": norm})
        whitebox.run(models[0], images, tmp_path / norm, settings, checkpoints=tmp_path, device="cpu")
        contents[norm] = artifacts.read(tmp_path / norm, "evaluation")["content"]
    assert list(contents["l2"]["scores"]) == ["clean", "fgsm", "pgd20", "pgd100", "autoattack"]
    assert contents["l2"]["curve"][-1]["correct"] == 0
    (note,) = contents["l2"]["notes"]
    assert note == "The check black box is not made in the l2 norm, because black-box attacks are in linf alone."
    examples = load_file(tmp_path / "l2" / "examples.safetensors")
    assert 0 < (examples["adversarial"] - examples["images"]).norm() <= 1.5 + 1e-5
    assert list(contents["l1"]["scores"]) == ["clean", "autoattack"] and contents["l1"]["curve"] == []
    note, other = contents["l1"]["notes"]
    assert "PGD" in note and "l1" in note and "more steps, restarts and unbounded epsilon are not made" in note
    assert "black box" in other
    assert contents["l1"]["corrupted"] == contents["l2"]["corrupted"]
