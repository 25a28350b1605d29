"""The same work on a CUDA GPU. Run where one is; elsewhere pytest's last lines say that these did not run."""

import pytest
import torch
from torch.nn import functional

from arnas import config, graphs, kernels, runtime
from arnas.data import image_set
from arnas.search.loop import SearchStep
from arnas.space.layout import NODES, Layout
from arnas.space.network import build, load_model
from arnas.space.operations import OPERATIONS
from arnas.space.supernet import Supernet
from arnas.stages import adopt, blackbox, derive, prepare, retrain, search, whitebox

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")


def relative_error(found, expected):
    return ((found.double().cpu() - expected).norm() / expected.norm()).item()


def gradients(network, images, labels, weights=()):
    """Gradients of the pixels, of the architecture, if there is one, and of the weights that are given."""
    images = images.clone().requires_grad_()
    wanted = [images, *getattr(network, "architecture", {}).values(), *weights]
    loss = functional.cross_entropy(network(images), labels)
    return torch.autograd.grad(loss, wanted)


def all_operations():
    """A genotype in which every operation stands in every kind of cell, also on the strided inputs."""
    names = list(OPERATIONS)
    node = lambda first: [[names[first % 7], 0], [names[(first + 1) % 7], 1]]  # noqa: E731
    return {
        kind: [node(2 * index + shift) for index in range(NODES)]
        for shift, kind in enumerate(("accurate", "reduce", "robust"))
    }


def network_of(kind):
    """A network that has every operation, and images and labels for it."""
    torch.manual_seed(0)
    images, labels = torch.rand(8, 3, 16, 16), torch.randint(5, (8,))
    if kind == "supernet":
        return Supernet(Layout.parse("A1 D2 R2"), 4, 5), images, labels
    description = {"architecture": "genotype", "cells": all_operations(), "layout": "A1 D2 R2", "auxiliary": False}
    description |= {"drop_path": 0.0, "channels": 8, "classes": 5, "channels_in": 3}
    return build(description).eval(), images, labels


@pytest.mark.parametrize("kind", ["derived", "supernet"])
def test_gradients_on_the_gpu_are_those_of_float64_on_the_cpu(kind):
    """An attack that climbs a wrong gradient overstates robustness: torch's average pool has had one on CUDA."""
    runtime.prepare("cuda")  # no TF32, whose error is a hundred times larger
    network, images, labels = network_of(kind)
    expected = gradients(network.double(), images.double(), labels)
    found = gradients(network.float().cuda(), images.cuda(), labels.cuda())
    for mine, reference in zip(found, expected, strict=True):
        assert relative_error(mine, reference) < 2e-3


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_training_in_another_precision_learns_and_leaves_fp32_behind(images_and_recipe, tmp_path, precision):
    images, recipe = images_and_recipe
    recipe = recipe.model_copy(update={"precision": precision})
    found = retrain.run(images, tmp_path / "out", recipe, name="net", checkpoints=tmp_path / "c", device="cuda")
    assert found["last_clean"] > 0.3  # chance is 0.1
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert not torch.is_autocast_enabled("cuda")


@pytest.fixture(scope="module")
def images_and_recipe(tmp_path_factory):
    settings = config.load("digits", {"retrain.architecture": "arnas-cifar10", "retrain.epochs": 6})
    prepare.run(tmp_path_factory.getbasetemp() / "digits", settings.prepare)
    return tmp_path_factory.getbasetemp() / "digits", settings.retrain


@pytest.mark.parametrize("kind", ["derived", "supernet"])
def test_the_kernels_compute_what_torch_does(kind, monkeypatch):
    """In double precision, where rounding does not hide a mistake; in training mode, so with every batch norm."""
    pytest.importorskip("triton")
    torch.manual_seed(0)
    images = torch.rand(5, 3, 17, 18, dtype=torch.float64, device="cuda")
    labels = torch.arange(5, device="cuda")
    if kind == "derived":
        description = {"architecture": "genotype", "cells": all_operations(), "layout": "A1 D2 R2", "auxiliary": False}
        network = build(description | {"drop_path": 0.0, "channels": 9, "classes": 5, "channels_in": 3}).train()
    else:
        network = Supernet(Layout.parse("A1 D2 R2"), 5, 5)
    network.double().cuda()
    convolutions = [
        weight for name, weight in network.named_parameters() if name.endswith("weight") and weight.dim() == 4
    ]
    found = {}
    for form in ("fast", "plain"):
        monkeypatch.setenv("ARNAS_FORM", form)
        assert kernels.usable(images) == (form == "fast")
        found[form] = gradients(network, images, labels, convolutions)
    for mine, reference in zip(found["fast"], found["plain"], strict=True):
        assert relative_error(mine, reference.cpu()) < 1e-11


@pytest.mark.parametrize("kind", ["derived", "supernet"])
def test_in_single_precision_the_fast_form_is_as_exact_as_the_plain_one(kind, monkeypatch):
    runtime.prepare("cuda")
    network, images, labels = network_of(kind)
    expected = gradients(network.double(), images.double(), labels)
    network, images, labels = network.float().cuda(), images.cuda(), labels.cuda()
    errors = {}
    for form in ("fast", "plain"):
        monkeypatch.setenv("ARNAS_FORM", form)
        found = gradients(network, images, labels)
        errors[form] = [relative_error(*pair) for pair in zip(found, expected, strict=True)]
    for fast, plain in zip(errors["fast"], errors["plain"], strict=True):
        assert fast <= 1.5 * plain  # rounding has its luck


def test_a_replayed_pass_is_the_computed_one():
    supernet, images, labels = network_of("supernet")
    supernet, images, labels = supernet.double().cuda(), images.double().cuda(), labels.cuda()
    replayed = graphs.Graphed(supernet)
    for _ in range(graphs.RECURRENCE + 2):
        images = torch.rand_like(images)
        wanted = [images.requires_grad_(), *supernet.architecture.values(), *supernet.weights()]
        found, expected = (
            torch.autograd.grad(functional.cross_entropy(model(images), labels), wanted)
            for model in (replayed, supernet)
        )
        for mine, reference in zip(found, expected, strict=True):
            assert relative_error(mine, reference.cpu()) < 1e-11
    assert any(isinstance(known, graphs._Pass) for known in replayed._replayed._passes.values())


LOSSES = ("natural_loss", "adversarial_loss", "train_loss")


def searched(form, steps, dtype, monkeypatch, images, labels):
    """The losses of each step of a search with the batches that are given, and the weights it ends with."""
    monkeypatch.setenv("ARNAS_FORM", form)
    torch.manual_seed(0)
    supernet = runtime.place(Supernet(Layout.parse("A1 D2 R2"), 4, 4).to(dtype), images.device)
    step, losses = SearchStep(supernet, config.Search(attack_steps=2, learning_rate=0.05)), []
    for index in range(steps):
        torch.manual_seed(index)
        train, validation = zip(images[index % len(images)].to(dtype), labels[index % len(images)], strict=True)
        figures = step(train, validation)
        losses.append([figures[name] for name in LOSSES])
    return torch.tensor(losses), supernet.weights()


def learnable(device="cuda", count=10):
    """`count` pairs of batches [2, 16, 3, 12, 12] of noise around one of four patterns, which are the classes."""
    torch.manual_seed(1)
    labels = torch.randint(4, (count, 2, 16))
    images = (torch.rand(4, 3, 12, 12)[labels] + 0.3 * torch.rand(count, 2, 16, 3, 12, 12)) / 1.3
    return images.to(device), labels.to(device)


def test_whole_steps_in_both_forms_are_equal_in_double_precision(monkeypatch):
    found = {form: searched(form, 6, torch.float64, monkeypatch, *learnable()) for form in ("fast", "plain")}
    torch.testing.assert_close(found["fast"][0], found["plain"][0], rtol=1e-9, atol=0)
    for mine, reference in zip(found["fast"][1], found["plain"][1], strict=True):
        assert relative_error(mine, reference.double().cpu()) < 1e-8  # six steps let rounding grow


def test_200_steps_in_both_forms_end_with_the_same_losses(monkeypatch):
    """Attacks in single precision are chaotic, so that single steps differ; what they lead to does not."""
    runtime.prepare("cuda")
    found = {form: searched(form, 200, torch.float32, monkeypatch, *learnable())[0] for form in ("fast", "plain")}
    last = {form: losses[-50:].mean(0) for form, losses in found.items()}
    torch.testing.assert_close(last["fast"], last["plain"], rtol=0.01, atol=0.002)


def test_every_stage_runs_on_the_gpu(tmp_path):
    settings, checkpoints = config.load("smoke"), tmp_path / "checkpoints"
    on_gpu = {"checkpoints": checkpoints, "device": "cuda"}
    prepare.run(tmp_path / "images", settings.prepare)
    search.run(tmp_path / "images", tmp_path / "supernet", settings.search, **on_gpu)
    derive.run(tmp_path / "supernet", tmp_path / "genotype.json")
    models = []
    for name in settings.models:
        models.append(tmp_path / name)
        genotype = tmp_path / "genotype.json"
        retrain.run(tmp_path / "images", models[-1], settings.recipe(name), name=name, genotype=genotype, **on_gpu)
        evaluation = whitebox.run(
            models[-1], tmp_path / "images", tmp_path / f"{name}.evaluation", settings.whitebox, **on_gpu
        )
        assert evaluation["clean"] >= evaluation["pgd20"]
    blackbox.run(models, tmp_path / "images", tmp_path / "blackbox", settings.blackbox, **on_gpu)


@pytest.mark.parametrize("size", [7, 32])
def test_batches_streamed_to_the_gpu_are_those_that_lie_there(noise, monkeypatch, size):
    resident = image_set.load(noise, "cuda")
    monkeypatch.setattr(image_set, "RESIDENT_SHARE", 0.0)
    streamed = image_set.load(noise, "cuda")
    assert resident.images.is_cuda and streamed.images.device.type == "cpu" and streamed.device.type == "cuda"
    order = torch.randint(90, (2, 300), device="cuda")
    for (images, labels), (same_images, same_labels) in zip(
        streamed.batches(order, size), resident.batches(order, size), strict=True
    ):
        torch.rand(2000, 2000, device="cuda").matmul(torch.rand(2000, 2000, device="cuda"))  # the copy has to wait
        assert images.is_cuda and torch.equal(images, same_images) and torch.equal(labels, same_labels)


def test_a_program_from_elsewhere_moves_to_the_gpu(noise, tmp_path):
    runtime.prepare("cuda")
    torch.manual_seed(0)
    network = build({"architecture": "resnet18", "channels": 4, "classes": 4, "channels_in": 1}).eval()
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (torch.rand(2, 1, 8, 8),), dynamic_shapes=batch), tmp_path / "n.pt2")
    adopt.run(tmp_path / "model", images=noise, program=tmp_path / "n.pt2")
    images = torch.rand(5, 1, 8, 8)
    moved, _ = load_model(tmp_path / "model", "cuda")
    assert relative_error(moved(images.cuda()), network(images).double()) < 1e-4
    settings = config.Whitebox(images=10, autoattack_images=0)
    whitebox.run(tmp_path / "model", noise, tmp_path / "out", settings, checkpoints=tmp_path / "c", device="cuda")
