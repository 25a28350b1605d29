import logging

import pyautoattack
import pytest
import torch
from torch import nn

from arnas.attacks import AutoAttack
from arnas.attacks.autoattack import PARTS
from arnas.errors import InvalidInput


class Rounded(nn.Module):
    """An image whose lower half has few grey levels, and no gradient."""

    def forward(self, images):
        return torch.cat([images[:, :, :4], (images[:, :, 4:] * 4).round() / 4], 2)


@pytest.mark.parametrize("classes", [4, 10])
def test_equals_one_run_of_the_library_to_the_pixel(classifier, digits, classes, capsys, monkeypatch):
    model = nn.Sequential(Rounded(), classifier(classes)).eval()
    images, labels = (part[digits[1] < classes][-10:] for part in digits)
    library = pyautoattack.AutoAttack(model, eps=0.2, seed=12345)
    library.apgd_targeted.n_target_classes = library.fab.n_target_classes = classes - 1
    expected, _ = library.run_standard_evaluation(images, labels)
    capsys.readouterr()

    broken = {}
    run_part = AutoAttack.part

    def spy(attack, name, *rest):
        result = run_part(attack, name, *rest)
        broken[name] = result[1].any().item()
        return result

    monkeypatch.setattr(AutoAttack, "part", spy)
    adversarial = AutoAttack(0.2, seed=12345)(model, images, labels)

    assert torch.equal(adversarial, expected)
    assert tuple(broken) == PARTS["standard"]  # none was left without samples
    assert broken["square"] and sum(broken.values()) >= 2
    assert (adversarial - images).abs().max() <= 0.2 + 1e-6 and adversarial.min() >= 0 and adversarial.max() <= 1
    assert capsys.readouterr() == ("", "")


def test_each_part_reports_what_it_broke_and_the_warnings_of_the_library(digits, capsys, caplog):
    class Staircase(nn.Module):
        def forward(self, images):
            return -torch.cdist(images.flatten(1).round(), digits[0][:4].flatten(1).round())

    images, labels = digits[0][:4], torch.arange(4)
    broken, warnings = {}, {}
    for part in PARTS["standard"][1::2]:  # the targeted one follows gradients, Square does not
        adversarial, broken[part], warnings[part] = AutoAttack(0.45).part(part, Staircase(), images, labels)
        assert torch.equal((adversarial != images).flatten(1).any(1), broken[part])
    assert not broken["apgd-t"].any() and broken["square"].any()
    assert warnings["square"] == []
    (warning,) = warnings["apgd-t"]
    assert warning.startswith("AutoAttack: there are points with zero gradient!") and "flags_doc" not in warning
    assert capsys.readouterr() == ("", "") and not caplog.records
    assert logging.getLogger("auto-attack").propagate and not logging.getLogger("auto-attack").handlers


def test_is_refused_with_fewer_than_four_classes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(InvalidInput, match="four classes or more, but the model has 3"):
        AutoAttack(0.1)(model, torch.rand(6, 1, 8, 8), model(torch.rand(6, 1, 8, 8)).argmax(1))


@pytest.fixture
def short(monkeypatch):
    """The library with a tenth of its steps and less: what is compared is which attacks run, on what, in which ball."""
    set_version = pyautoattack.AutoAttack._set_version

    def shorten(library, version):
        set_version(library, version)
        for attack in (library.apgd, library.apgd_targeted):
            attack.n_iter = attack.n_iter_orig = 12
            attack.eot_iter = min(attack.eot_iter, 3)
        library.fab.n_iter = 10
        library.square.n_queries = 30

    monkeypatch.setattr(pyautoattack.AutoAttack, "_set_version", shorten)


@pytest.mark.parametrize("version", PARTS)
@pytest.mark.parametrize(("norm", "name", "epsilon"), [("linf", "Linf", 0.04), ("l2", "L2", 0.2), ("l1", "L1", 0.8)])
def test_every_version_in_every_norm_is_the_librarys(classifier, digits, version, norm, name, epsilon, short):
    model = classifier(7)
    images, labels = (part[digits[1] < 7] for part in digits)
    margins = model(images).sort(dim=1).values.diff(dim=1)[:, -1]
    chosen = torch.where(model(images).argmax(1) == labels, margins, torch.inf).argsort()[:600:100]  # barely and well
    images, labels = images[chosen], labels[chosen]
    library = pyautoattack.AutoAttack(model, eps=epsilon, norm=name, version=version, seed=7)
    assert tuple(library.attacks_to_run) == PARTS[version]
    for attack in (library.apgd_targeted, library.fab):
        attack.n_target_classes = min(attack.n_target_classes, 6)
    expected, _ = library.run_standard_evaluation(images.clone(), labels.clone(), batch_size=6)
    adversarial = AutoAttack(epsilon, norm, version, seed=7)(model, images, labels)
    assert torch.equal(adversarial, expected)
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    lengths = torch.linalg.vector_norm((adversarial - images).flatten(1), order, dim=1)
    assert 0 < (lengths > 0).sum() < 6  # some broke, others kept every part at work
    assert lengths.max() <= epsilon * (1 + 1e-4) and adversarial.min() >= 0 and adversarial.max() <= 1


def test_a_random_model_is_attacked_without_a_complaint_that_it_is_random(classifier, digits, short):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier(5)

        def forward(self, images):
            return self.inner(images + 0.05 * torch.randn_like(images))

    model, (images, labels) = Noisy(), (part[digits[1] < 5][:4] for part in digits)

    def attack(version):
        torch.manual_seed(1)
        _, broken, warnings = AutoAttack(0.1, version=version).part("apgd-ce", model, images, labels)
        return broken.tolist(), any("randomized" in warning for warning in warnings)

    assert attack("standard")[1] and not attack("rand")[1]
    assert attack("rand") == attack("rand")
