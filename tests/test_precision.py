"""What is promised to be true fp32 is, whatever precision is set around it or for the training."""

import copy
import math

import pytest
import torch

from arnas import artifacts, config, runtime
from arnas.data.image_set import load
from arnas.errors import Diverged, InvalidInput
from arnas.search import loop as search_loop
from arnas.space.gradients import Convolution
from arnas.space.network import load_model
from arnas.stages import prepare, retrain, whitebox
from arnas.training import loop
from arnas.training.distributed import BatchNorm

SETTINGS = config.load("smoke", {"retrain.architecture": "resnet18", "retrain.channels": 4, "retrain.epochs": 1})
EXACT, TF32, BF16 = (False, False, False), (True, True, False), (False, False, True)


def flags():
    """TF32 in matrix products, in convolutions, and autocast, as they are at this moment."""
    cuda = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    return *cuda, torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


@pytest.fixture(autouse=True)
def left_as_they_were():
    runtime.prepare("cpu")
    yield
    assert flags() == EXACT


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("smoke") / "images"
    prepare.run(path, SETTINGS.prepare)
    return path


@pytest.mark.parametrize(("name", "expected"), [("fp32", EXACT), ("tf32", TF32), ("bf16", BF16)])
def test_a_precision_holds_within_and_ends_also_by_an_exception(name, expected):
    with pytest.raises(KeyError), runtime.precision(name, "cpu"):
        assert flags() == expected
        with runtime.precision("fp32"):
            assert flags() == EXACT
        assert flags() == expected
        raise KeyError
    assert flags() == EXACT


@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16"])
def test_training_has_the_precision_that_is_set_and_the_holdout_has_fp32(name, images, tmp_path, monkeypatch):
    seen = {"objective": set(), "holdout": set()}
    natural, still_right = loop.Objective.forward, loop._still_right

    def objective(*arguments):
        seen["objective"].add(flags())
        loss, logits = natural(*arguments)
        assert logits.dtype == (torch.bfloat16 if name == "bf16" else torch.float32)
        return loss, logits

    def holdout(model, *arguments):
        seen["holdout"].add(flags())
        return still_right(model, *arguments)

    monkeypatch.setattr(loop.Objective, "forward", objective)
    monkeypatch.setattr(loop, "_still_right", holdout)
    monkeypatch.setattr(runtime, "require_precision", lambda *given: None)  # the flags can be set on any machine
    recipe = SETTINGS.retrain.model_copy(update={"precision": name})
    with runtime.precision("bf16", "cpu"):  # as a caller may have set it
        retrain.run(images, tmp_path / "out", recipe, name="net", checkpoints=tmp_path / "c", device="cpu")
    assert seen == {"objective": {{"fp32": EXACT, "tf32": TF32, "bf16": BF16}[name]}, "holdout": {EXACT}}
    assert artifacts.read(tmp_path / "out", "model")["content"]["settings"]["precision"] == name
    network, _ = load_model(tmp_path / "out")
    assert {value.dtype for value in network.parameters()} == {torch.float32}


def test_a_training_that_diverges_leaves_the_flags_as_they_were(images, tmp_path):
    recipe = SETTINGS.retrain.model_copy(update={"precision": "bf16", "learning_rate": 1e30, "gradient_clip": 1e30})
    with pytest.raises(Diverged):
        retrain.run(images, tmp_path / "out", recipe, name="net", checkpoints=tmp_path / "c", device="cpu")


@pytest.mark.parametrize("around", ["tf32", "bf16"])
@pytest.mark.parametrize("method", ["finite_difference", "exact", "first_order"])
def test_hypergradients_are_fp32_whatever_is_set_around_them(around, method, images, monkeypatch):
    data = load(images)
    settings = SETTINGS.search.model_copy(update={"hypergradient": method})
    runtime.seed(0, "test")
    supernet = search_loop.Supernet(search_loop.layout(settings), 2, 10, 1)
    batch = data.batch(torch.arange(6))
    found = []
    for precision in ("fp32", around):
        step = search_loop.SearchStep(copy.deepcopy(supernet), settings)
        seen = set()
        step.supernet.register_forward_hook(lambda *_, seen=seen: seen.add(flags()))
        losses = [step._loss(*batch), step._loss(*batch)]
        with runtime.precision(precision, "cpu"):
            found.append(
                search_loop.hypergradients(
                    losses, losses[0], step.weights, step.architecture, step._virtual_step(), method
                )[0]
            )
        assert seen == {EXACT}
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("around", ["tf32", "bf16"])
def test_evaluation_is_fp32_whatever_is_set_around_it(around, images, tmp_path, monkeypatch):
    told = {"checkpoints": tmp_path / "c", "device": "cpu"}
    retrain.run(images, tmp_path / "model", SETTINGS.retrain, name="net", **told)
    attacks = SETTINGS.whitebox.model_copy(update={"autoattack_images": 0})
    expected = whitebox.run(tmp_path / "model", images, tmp_path / "a", attacks, **told)
    seen, load_plainly = set(), load_model

    def load_watched(path, device):
        network, body = load_plainly(path, device)
        network.features.register_forward_hook(lambda *_: seen.add(flags()))
        return network, body

    monkeypatch.setattr("arnas.evaluation.models.load_model", load_watched)
    monkeypatch.setenv("ARNAS_FORM", "plain")  # so that the hook stays on the network that is attacked
    told["checkpoints"] = tmp_path / "d"
    monkeypatch.setattr(runtime, "prepare", lambda device, gpus: torch.device(device))
    with runtime.precision(around, "cpu"):
        found = whitebox.run(tmp_path / "model", images, tmp_path / "b", attacks, **told)
    assert seen == {EXACT} and found["clean"] == expected["clean"]


def test_tf32_is_refused_where_it_would_be_promised_and_not_kept(images, tmp_path):
    recipe = SETTINGS.retrain.model_copy(update={"precision": "tf32"})
    with pytest.raises(
        InvalidInput, match="precision tf32 is for NVIDIA GPUs from Ampere on, not for cpu; choose fp32"
    ):
        retrain.run(images, tmp_path / "out", recipe, name="net", checkpoints=tmp_path / "c", device="cpu")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "geometry", [{"padding": 2, "groups": 6}, {"padding": 2, "dilation": 1}, {"padding": 4, "dilation": 2, "stride": 2}]
)
def test_in_bf16_the_fast_way_back_is_as_near_as_torchs_own(geometry):
    torch.manual_seed(0)
    convolution = Convolution(6, 6, 5, bias=True, **geometry)
    x, cotangent = torch.randn(4, 6, 9, 9, requires_grad=True), None
    wanted = [x, *convolution.parameters()]
    found = {}
    for name, module in (("exact", convolution), ("fast", convolution), ("torch", None)):
        with runtime.precision("fp32" if name == "exact" else "bf16", "cpu"):
            y = module(x) if module else torch.nn.Conv2d.forward(convolution, x)
            cotangent = torch.randn_like(y) if cotangent is None else cotangent
            found[name] = torch.autograd.grad((y * cotangent).sum(), wanted)
        assert y.dtype == (torch.float32 if name == "exact" else torch.bfloat16)
    for exact, fast, own in zip(*found.values(), strict=True):
        error, torchs = ((value - exact).norm() / exact.norm() for value in (fast, own))
        assert 0 < error < 2 * torchs < 0.02 and fast.dtype == torch.float32


def test_in_bf16_batch_norm_over_processes_keeps_its_sums_in_fp32():
    torch.manual_seed(0)
    images = (torch.randn(64, 3, 16, 16) + 10).bfloat16()
    norm, ours = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    ours.__class__ = BatchNorm
    with runtime.precision("bf16", "cpu"):
        assert torch.allclose(ours(images), norm(images.float()), atol=1e-4)
    assert torch.allclose(ours.running_var, norm.running_var, rtol=1e-4)
    assert math.isclose(ours.running_mean.mean(), 1.0, rel_tol=0.01)
