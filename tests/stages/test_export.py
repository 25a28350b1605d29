"""What others load is the network that was trained here, and the proof says on what that rests."""

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from arnas import artifacts, config
from arnas.config import Export, Retrain
from arnas.data.image_set import load
from arnas.errors import InvalidInput
from arnas.space import programs
from arnas.space.foreign import Program
from arnas.space.network import build, load_model
from arnas.stages import adopt, export, retrain

ONNX = all(importlib.util.find_spec(name) for name in export.PACKAGES)
SETTINGS = Export(epsilon=0.12, step_size=0.03, attack_steps=5, checked_images=30, batch_size=20)


@pytest.fixture(scope="module")
def exported(models, images, tmp_path_factory):
    """Model a in all formats, and what the stage returned."""
    if not ONNX:
        pytest.skip("onnx, onnxscript and onnxruntime are not here")
    output = tmp_path_factory.mktemp("exported") / "out"
    return output, export.run(models[0], output, SETTINGS, images=images)


@pytest.fixture(scope="module")
def pixels(images):
    data = load(images)
    return data.batch(data.splits["test"][:30])


def test_the_proof_counts_what_it_claims(exported, models, pixels):
    output, returned = exported
    proof = json.loads((output / "proof.json").read_text())
    images, labels = pixels
    right = int((load_model(models[0])[0](images).argmax(1) == labels).sum())
    assert proof["scores"]["clean"]["correct"] == right and 0 < proof["scores"]["robust"]["correct"] < right
    assert returned == {name: proof["scores"][name]["accuracy"] for name in ("clean", "robust")} | {
        "formats": ["state", "program", "onnx"]
    }
    for form, found in proof["formats"].items():
        assert found["clean"]["same_predictions"] == found["adversarial"]["same_predictions"] == 30
        assert max(found[which]["logit_difference"] for which in ("clean", "adversarial")) <= 1e-5
        assert ("robust" in found) == (form != "onnx")
    assert proof["formats"]["state"]["robust"] == proof["scores"]["robust"]
    assert proof["model"]["digest"] == artifacts.read(models[0], "model")["digest"]
    files = {file.name for file in output.iterdir()}
    assert files == {"weights.safetensors", "network.json", "program.pt2", "model.onnx", "proof.json"}
    assert proof["files"] == {name: artifacts.file_digest(output / name) for name in files - {"proof.json"}}
    assert {"torch", "onnx", "onnxruntime"} <= set(proof["versions"])


@pytest.mark.parametrize("count", [1, 3])
def test_each_file_alone_gives_the_logits_of_the_model(exported, models, pixels, count):
    import onnxruntime

    output, images = exported[0], pixels[0][:count]
    expected = load_model(models[0])[0](images)
    network = build(json.loads((output / "network.json").read_text())["network"])
    network.load_state_dict(load_file(output / "weights.safetensors"))
    assert torch.equal(network.eval()(images), expected)
    program = torch.export.load(output / "program.pt2").module()
    assert torch.allclose(program(images), expected, atol=1e-5)
    session = onnxruntime.InferenceSession(output / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], expected, atol=1e-5)


def test_no_file_names_a_place_of_the_machine_that_wrote_it(exported):
    here = str(export.__file__).rpartition("/arnas/")[0].encode()
    for file in exported[0].iterdir():
        assert here not in file.read_bytes(), file


@pytest.mark.parametrize("name", [*config.RIVALS, *config.genotypes()])
def test_every_architecture_comes_back_as_it_was(name, noise, tmp_path):
    data = load(noise)
    recipe = Retrain(architecture=name, channels=2, layers=3)
    description = retrain.describe(recipe, data, None)
    torch.manual_seed(0)
    network = build(description).eval()
    content = {"name": name, "network": description, "settings": {}, "selection": None}
    content |= {"data": {"dataset": "noise", "classes": data.classes, "shape": data.shape}}
    with artifacts.publish(tmp_path / "model") as folder:
        folder.mkdir()
        save_file(network.state_dict(), folder / "best.safetensors")
        artifacts.write(folder, "model", content, {})
    settings = Export(attack_steps=1, checked_images=8, batch_size=8)
    formats = export.FORMATS if ONNX else export.FORMATS[:2]
    export.run(tmp_path / "model", tmp_path / "out", settings, images=noise, formats=formats)
    theirs = Program(programs.read(tmp_path / "out" / "program.pt2"))
    images = torch.rand(3, *data.shape)
    assert torch.allclose(theirs(images), network(images), atol=1e-5)


def test_what_was_adopted_goes_out_again(exported, models, images, pixels, tmp_path):
    adopt.run(tmp_path / "model", images=images, program=exported[0] / "program.pt2", name="back")
    returned = export.run(tmp_path / "model", tmp_path / "out", SETTINGS, images=images, formats=["program"])
    assert returned == exported[1] | {"formats": ["program"]}
    program = torch.export.load(tmp_path / "out" / "program.pt2").module()
    assert torch.allclose(program(pixels[0]), load_model(models[0])[0](pixels[0]), atol=1e-5)
    with pytest.raises(InvalidInput, match="has no format state; choose among program, onnx"):
        export.run(tmp_path / "model", tmp_path / "out", SETTINGS, images=images, formats=["state"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda head: head.bias[0].add_(5), "agrees on .* of 30 clean images"),
        (lambda head: head.bias.add_(0.01), "agrees on 30 of 30 clean images, and its logits differ by"),
    ],
)
def test_a_reload_that_is_another_network_stops_and_leaves_nothing(
    models, images, tmp_path, monkeypatch, change, sentence
):
    def reloaded(folder, network, content):
        other = copy.deepcopy(network)
        change(other.head)
        return other

    monkeypatch.setattr(export, "_state", reloaded)
    with pytest.raises(InvalidInput, match=f"The format state, loaded again, is another network: it {sentence}"):
        export.run(models[0], tmp_path / "out", SETTINGS, images=images, formats=["state"])
    assert not (tmp_path / "out").exists()


def test_gradients_that_hide_are_noticed(models, images, tmp_path, monkeypatch):
    """The same predictions, but nothing for an attack to follow: as robust as it is not."""

    class Hidden(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, images):
            return self.network(images).detach() + 0 * images.sum()

    monkeypatch.setattr(export, "_state", lambda folder, network, content: Hidden(network))
    with pytest.raises(InvalidInput, match=r"PGD leaves .* of 30 images right, and .* of the model's"):
        export.run(models[0], tmp_path / "out", SETTINGS, images=images, formats=["state"])


def test_what_onnx_lacks_is_named_before_anything_is_written(models, images, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name != "onnx" else object())
    with pytest.raises(InvalidInput, match=r"needs onnxscript, onnxruntime; pip install 'arnas\[export\]'"):
        export.run(models[0], tmp_path / "out", SETTINGS, images=images)
    assert not (tmp_path / "out").exists()


def test_a_model_of_other_images_is_refused(models, noise, write_image_set, tmp_path):
    with pytest.raises(InvalidInput, match="give images like those of its training"):
        export.run(models[0], tmp_path / "out", SETTINGS, images=write_image_set(list("abcde")))
