"""What was trained elsewhere is evaluated as what was trained here, and what cannot be is refused in a sentence."""

import io
import json
import os
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.export import Dim

from arnas import artifacts, runtime
from arnas.config import Blackbox, Settings, Whitebox
from arnas.data.image_set import load
from arnas.errors import InvalidInput
from arnas.evaluation.models import load_fitting
from arnas.space.network import load_model
from arnas.stages import adopt, blackbox, report, study, whitebox

ATTACKED = Whitebox(epsilon=0.12, step_size=0.03, images=40, autoattack_images=6, block_size=20, examples=2)
MODULE = '''
import json
import torch
from torch import nn
from arnas.space.network import build

def ours():
    return build(json.loads("""DESCRIPTION"""))

class Plain(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.normalise = nn.BatchNorm2d(1)
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(256, classes)

    def forward(self, images):
        return self.head(self.convolution(self.normalise(images)).relu().view(images.shape[0], -1))

def five():
    return Plain(5)

class Two(Plain):
    def forward(self, images):
        return super().forward(images), images

class Blind(Plain):
    def forward(self, images):
        return super().forward(images).detach()

class Wide(Plain):
    def forward(self, images):
        return super().forward(images[:, :, :, 4:])

class Random(Plain):
    def forward(self, images):
        return super().forward(images + 0.1 * torch.randn_like(images))

class Changing(Plain):
    factor = 1.0
    def forward(self, images):
        return self.factor * super().forward(images)

def failing():
    raise ValueError("no such size")

def number():
    return 3
'''


@pytest.fixture(scope="module")
def factories(models, tmp_path_factory):
    """The name of an importable module with factories; `ours` makes the network of the first model."""
    folder = tmp_path_factory.mktemp("code")
    described = json.dumps(artifacts.read(models[0], "model")["content"]["network"])
    (folder / "elsewhere.py").write_text(MODULE.replace("DESCRIPTION", described))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield "elsewhere"
    sys.modules.pop("elsewhere", None)


@pytest.fixture(scope="module")
def state(models):
    return models[0] / "best.safetensors"


@pytest.fixture(scope="module")
def by_factory(factories, state, images, tmp_path_factory):
    output = tmp_path_factory.mktemp("adopted") / "model"
    return output, adopt.run(output, images=images, model=f"{factories}:ours", state=state)


@pytest.fixture(scope="module")
def by_program(models, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    network, _ = load_model(models[0])
    program = torch.export.export(network, (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: Dim("batch")},))
    torch.export.save(program, folder / "theirs.pt2")
    return folder / "model", adopt.run(folder / "model", images=images, program=folder / "theirs.pt2")


@pytest.fixture
def plain(factories, images, tmp_path):
    """A function of a factory's name and a state dict: the adopted model."""

    def adopted(name, state=None, file="state.pt"):
        module = sys.modules[factories] if factories in sys.modules else __import__(factories)
        torch.save(getattr(module, name)().state_dict() if state is None else state, tmp_path / file)
        output = tmp_path / "model"
        adopt.run(output, images=images, model=f"{factories}:{name}", state=tmp_path / file)
        return output

    return adopted


@pytest.fixture(scope="module")
def attacked(models, by_factory, by_program, images, tmp_path_factory):
    """White-box evaluations of the first model and of its two forms from elsewhere, all computed alike."""
    folder = tmp_path_factory.mktemp("evaluations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARNAS_FORM", "plain")  # ours is folded and in another memory format otherwise
        patch.setattr(runtime, "memory_format", lambda _: torch.contiguous_format)
        for name, model in (("ours", models[0]), ("factory", by_factory[0]), ("program", by_program[0])):
            whitebox.run(model, images, folder / name, ATTACKED, checkpoints=folder / "checkpoints", device="cpu")
    return folder


@pytest.mark.parametrize("form", ["factory", "program"])
def test_every_sample_fares_under_every_attack_as_in_the_original(form, attacked):
    expected, found = (load_file(attacked / name / "outcomes.safetensors") for name in ("ours", form))
    series = {f"{name}_first" for name in ("autoattack", "curve", "restarts")} | {"corruptions"}
    assert set(expected) == {"clean", "fgsm", "pgd20", "pgd100", "autoattack"} | series
    for attack, outcome in expected.items():
        assert torch.equal(found[attack], outcome), attack
    assert expected["pgd20"].any() and not expected["pgd20"].all()
    expected, found = (load_file(attacked / name / "examples.safetensors") for name in ("ours", form))
    assert torch.allclose(found["adversarial"], expected["adversarial"], atol=1e-6)


@pytest.mark.parametrize("form", ["factory", "program"])
def test_in_the_fast_form_predictions_are_those_of_the_original(form, models, by_factory, by_program, images):
    data = load(images)
    pixels, _ = data.batch(data.splits["test"])
    ours, _ = load_fitting(models[0], data)
    theirs, _ = load_fitting({"factory": by_factory, "program": by_program}[form][0], data)
    assert torch.allclose(theirs(pixels), ours(pixels), atol=1e-4)
    assert torch.equal(theirs(pixels).argmax(1), ours(pixels).argmax(1))


def test_the_black_box_matrix_cannot_tell_the_original_from_what_was_adopted(
    models, by_factory, by_program, images, tmp_path, monkeypatch
):
    monkeypatch.setenv("ARNAS_FORM", "plain")
    monkeypatch.setattr(runtime, "memory_format", lambda _: torch.contiguous_format)
    settings = Blackbox(epsilon=0.12, step_size=0.03, attack_steps=5, images=30, square_images=0)
    given = [models[0], models[1], by_factory[0], by_program[0]]
    figures = blackbox.run(given, images, tmp_path / "out", settings, checkpoints=tmp_path / "c", device="cpu")
    for same in ("ours", "theirs"):
        assert figures[f"b -> {same}"] == figures["b -> a"] and figures[f"{same} -> b"] == figures["a -> b"]
        assert figures[f"{same} -> a"] == figures["a -> a"] < 1


def test_the_report_shows_it_and_says_that_its_training_is_not_known(attacked, by_factory, images, tmp_path):
    page, scores = tmp_path / "report.html", tmp_path / "scores.json"
    report.run(
        page, scores, images=images, settings=Settings(), models=[by_factory[0]], evaluations=[attacked / "factory"]
    )
    entry = json.loads(scores.read_text())["models"]["ours"]
    assert "selection" not in entry and entry["pgd20"]["total"] == 40
    text = page.read_text()
    assert "Trained elsewhere, and only evaluated here: ours." in text
    assert "<h2>Training</h2>" not in text and "trained once" not in text


def test_a_study_compares_it_with_others_and_says_that_its_training_is_not_known(
    attacked, models, by_factory, tmp_path
):
    page, found = tmp_path / "p.html", tmp_path / "s.json"
    evaluations = [attacked / "ours", attacked / "factory"]
    study.run([], [models[0], by_factory[0]], evaluations, found, name="comparison", settings=Settings(), page=page)
    content = json.loads(found.read_text())
    assert {(pair["first"], pair["second"]) for pair in content["pairs"]} == {("a", "ours")}
    (warning,) = content["warnings"]  # the other one has no settings here either
    assert warning.startswith("Trained elsewhere, and only evaluated here: a, ours.") and warning in page.read_text()
    attack = artifacts.read(evaluations[0], "evaluation")["content"]["settings"]  # and not that of the settings
    assert (content["settings"]["whitebox"]["epsilon"], content["settings"]["whitebox"]["images"]) == (
        attack["epsilon"],
        attack["images"],
    )


@pytest.mark.parametrize("form", ["factory", "program"])
def test_the_artifact_tells_what_is_known_and_no_more(form, by_factory, by_program, models, images):
    path, returned = {"factory": by_factory, "program": by_program}[form]
    body, original = (artifacts.read(folder, "model") for folder in (path, models[0]))
    content = body["content"]
    assert content["selection"] is None and content["settings"] == {} and "history.json" not in body["files"]
    assert content["parameters"] == original["content"]["parameters"]
    assert content["macs"] == returned["macs"] == 8 * 8 * (1 * 12 * 9 + 12 * 4 * 2) + 16 * 4  # stem, two 1x1, head
    assert content["data"] == original["content"]["data"] and content["images"] == load(images).digest
    assert content["name"] == returned["name"] == {"factory": "ours", "program": "theirs"}[form]
    data = load(images)
    pixels, labels = data.batch(data.splits["test"])
    right = load_model(models[0])[0](pixels).argmax(1) == labels
    assert returned["clean"] == pytest.approx(right.float().mean().item())


def test_a_factory_of_any_layout_of_memory_is_taken_as_it_is(plain, images):
    """`view` fails where a network is brought into another memory format than its own."""
    network, _ = load_fitting(plain("Plain"), load(images))
    assert network(torch.rand(3, 1, 8, 8)).shape == (3, 4)


def test_names_and_shapes_that_do_not_match_are_all_named(plain):
    state = {"convolution.weight": torch.zeros(4, 1, 5, 5), "tail.bias": torch.zeros(2)}
    with pytest.raises(InvalidInput) as refused:
        plain("Plain", state)
    norm = ", ".join(f"normalise.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
    assert str(refused.value).endswith(
        f"does not fit the network (missing: {norm}, normalise.num_batches_tracked, convolution.bias, head.weight, "
        "head.bias; unexpected: tail.bias; of another shape: convolution.weight [4, 1, 5, 5] for [4, 1, 3, 3]); give "
        "the state dict of this very network."
    )


def test_of_more_names_than_anybody_reads_the_rest_is_counted(plain):
    with pytest.raises(InvalidInput, match=r"unexpected: tail\.0, .*, tail\.49 and 7 more\)"):
        plain("Plain", {f"tail.{index}": torch.zeros(2) for index in range(57)})


class Hostile:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("file", ["state.pt", "state.pth", "state.safetensors"])
def test_a_hostile_pickle_is_refused_and_does_not_run(plain, tmp_path, file):
    with pytest.raises(InvalidInput, match=r"never unpickled|cannot be read"):
        plain("Plain", {"head.weight": Hostile(tmp_path / "mark")}, file)
    assert not (tmp_path / "mark").exists()
    with pytest.raises(AttributeError):
        torch.load(io.BytesIO((tmp_path / file).read_bytes()), weights_only=False).pop("head.weight").shape  # noqa: B018
    assert (tmp_path / "mark").exists()


def test_a_checkpoint_with_more_than_tensors_is_refused_with_what_it_holds(plain):
    with pytest.raises(InvalidInput, match="holds epoch, model, not tensors by name"):
        plain("Plain", {"epoch": 3, "model": {"head.bias": torch.zeros(4)}})


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        ("five", r"returns torch.float32 \[8, 5\] for 8 images of shape \[1, 8, 8\] in 4 classes"),
        ("Two", "returns a tuple; it must return logits alone"),
        ("Blind", "do not depend on the pixels differentiably"),
        ("Wide", r"cannot classify images of shape \[1, 8, 8\] \(RuntimeError: "),
    ],
)
def test_a_network_that_breaks_the_contract_is_refused(plain, factory, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        plain(factory)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("elsewhere", "names no factory; write package.module:factory"),
        ("nowhere.to:be", "cannot be imported .*PYTHONPATH"),
        ("elsewhere:none", "has nothing callable of the name none"),
        ("elsewhere:failing", "failed \\(ValueError: no such size\\)"),
        ("elsewhere:number", "returned a int; it must return"),
    ],
)
def test_a_factory_that_makes_no_network_is_refused(factories, name, sentence, state, images, tmp_path):
    with pytest.raises(InvalidInput, match=sentence):
        adopt.run(tmp_path / "out", images=images, model=name, state=state)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "given", [{}, {"model": "a:b"}, {"state": "x"}, {"model": "a:b", "state": "x", "program": "y"}]
)
def test_one_of_the_two_ways_must_be_chosen(given, images, tmp_path):
    with pytest.raises(InvalidInput, match="Give a factory and its state dict"):
        adopt.run(tmp_path / "out", images=images, **given)


def test_files_that_are_not_there_are_named(factories, images, tmp_path):
    with pytest.raises(InvalidInput, match=r"There is no file .*none\.pt2"):
        adopt.run(tmp_path / "out", images=images, program=tmp_path / "none.pt2")
    with pytest.raises(InvalidInput, match=r"none\.pt cannot be read"):
        adopt.run(tmp_path / "out", images=images, model=f"{factories}:Plain", state=tmp_path / "none.pt")


def test_a_program_in_training_mode_is_refused(factories, images, tmp_path):
    module = __import__(factories)
    program = torch.export.export(module.Plain(), (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(InvalidInput, match="depend on the others in its batch, as in training mode"):
        adopt.run(tmp_path / "out", images=images, program=tmp_path / "net.pt2")


def test_code_that_is_gone_or_has_changed_is_noticed_when_the_model_is_loaded(plain, factories, monkeypatch):
    output, module = plain("Changing"), sys.modules[factories]
    load_model(output)
    monkeypatch.setattr(module.Changing, "factor", 1.1)
    with pytest.raises(InvalidInput, match=r"has changed since it was adopted .*adopt it again"):
        load_model(output)
    monkeypatch.setattr(module, "Changing", None)
    with pytest.raises(InvalidInput, match="nothing callable of the name Changing"):
        load_model(output)


def test_a_random_network_is_taken_with_a_warning(plain, capsys):
    output = plain("Random")
    assert "random by design" in capsys.readouterr().err
    load_model(output)


def test_one_that_only_guesses_is_taken_with_a_warning(plain, by_factory, capsys):
    plain("Plain", nn.Module.state_dict(sys.modules["elsewhere"].Plain()) | {"head.weight": torch.zeros(4, 256)})
    assert "little more than guessing would; does it take pixels in [0, 1]" in capsys.readouterr().err


def test_a_state_dict_of_safetensors_is_taken(factories, images, tmp_path):
    state = __import__(factories).Plain().state_dict()
    save_file(state, tmp_path / "state.safetensors")
    adopt.run(tmp_path / "out", images=images, model=f"{factories}:Plain", state=tmp_path / "state.safetensors")
    assert torch.equal(load_file(tmp_path / "out" / "best.safetensors")["head.bias"], state["head.bias"])
