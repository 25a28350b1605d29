import pytest
import torch
from safetensors.torch import load_file

from arnas import artifacts, runtime
from arnas.attacks import PGD
from arnas.config import Blackbox
from arnas.data.image_set import load
from arnas.errors import InvalidInput
from arnas.evaluation.blackbox import BlackboxEvaluation
from arnas.space.network import load_model
from arnas.stages import blackbox

SETTINGS = Blackbox(
    seed=5,
    epsilon=0.15,
    step_size=0.04,
    images=50,
    square_images=15,
    square_queries=60,
    block_size=20,
    batch_size=8,
    attack_steps=10,
)


@pytest.fixture(scope="module")
def finished(models, images, tmp_path_factory):
    """The output of one run, its checkpoints and what it returned."""
    folder = tmp_path_factory.mktemp("blackbox")
    returned = blackbox.run(models, images, folder / "out", SETTINGS, checkpoints=folder / "checkpoints", device="cpu")
    return folder, returned


def test_the_whole_matrix_counts_the_outcomes_of_the_samples(finished):
    folder, returned = finished
    body = artifacts.read(folder / "out", "blackbox")
    content, outcomes = body["content"], load_file(folder / "out" / "outcomes.safetensors")
    assert content["models"] == ["a", "b"] and returned["digest"] == body["digest"]
    for source in "ab":
        for target in "ab":
            right, score = outcomes[f"transfer/{source}/{target}"], content["blackbox"][source][target]
            assert (score["correct"], score["total"]) == (int(right.sum()), 50)
            assert returned[f"{source} -> {target}"] == score["accuracy"]
            assert not (right & ~outcomes[f"clean/{target}"]).any()
        right, score = outcomes[f"square/{source}"], content["square"][source]
        assert (score["correct"], score["total"]) == (int(right.sum()), 15)
        assert returned[f"square -> {source}"] == score["accuracy"]
        assert not (right & ~outcomes[f"clean/{source}"][:15]).any() and not right.all()


def test_an_attack_hurts_its_own_source_more_than_others(finished):
    matrix = artifacts.read(finished[0] / "out", "blackbox")["content"]["blackbox"]
    assert matrix["a"]["a"]["correct"] < matrix["b"]["a"]["correct"]
    assert matrix["b"]["b"]["correct"] < matrix["a"]["b"]["correct"]


def test_outcomes_are_those_of_pgd_on_the_source(finished, models, images):
    outcomes = load_file(finished[0] / "out" / "outcomes.safetensors")
    (source, _), (target, _) = (load_model(path) for path in models)
    image_set = load(images)
    pixels, labels = image_set.batch(image_set.splits["test"][20:40])
    runtime.seed(5, "blackbox", "pgd", 20)  # of the whole block, so that it is each sample's own
    adversarial = PGD(0.15, 0.04, 10)(source, pixels, labels)
    expected = (target(pixels).argmax(1) == labels) & (target(adversarial).argmax(1) == labels)
    assert torch.equal(outcomes["transfer/a/b"][20:40], expected)


def test_killed_at_several_moments_and_resumed_it_writes_the_same_bytes(finished, models, images, kill_and_resume):
    output = kill_and_resume("blackbox", [models, images], SETTINGS, kills=[1, 12, 40, 90])
    assert artifacts.read(output, "blackbox")["digest"] == finished[1]["digest"]
    assert (output / "outcomes.safetensors").read_bytes() == (finished[0] / "out" / "outcomes.safetensors").read_bytes()


def test_run_again_it_reuses_all_work(finished, models, images, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(BlackboxEvaluation, "_batch")
    returned = blackbox.run(
        models, images, tmp_path / "out", SETTINGS, checkpoints=finished[0] / "checkpoints", device="cpu"
    )
    assert returned == finished[1] and "reused" in capsys.readouterr().err


def test_square_can_be_left_out(models, images, tmp_path):
    settings = SETTINGS.model_copy(update={"square_images": 0, "images": 5})
    blackbox.run(models[:1], images, tmp_path / "out", settings, checkpoints=tmp_path, device="cpu")
    content = artifacts.read(tmp_path / "out", "blackbox")["content"]
    assert content["square"] == {} and list(content["blackbox"]) == ["a"]


def test_unusable_models_are_refused(write_image_set, models, images, tmp_path):
    def run(paths, image_set):
        blackbox.run(paths, image_set, tmp_path / "out", SETTINGS, checkpoints=tmp_path, device="cpu")

    with pytest.raises(InvalidInput, match="each of its own name, but got a, a"):
        run([models[0], models[0]], images)
    with pytest.raises(InvalidInput, match="but got none"):
        run([], images)
    with pytest.raises(InvalidInput, match="4 classes, but the image set"):
        run(models, write_image_set(["zero", "one", "two"]))
    with pytest.raises(InvalidInput, match="an image_set, but a model is needed"):
        run([images], images)
    assert not (tmp_path / "out").exists()
