import logging

import pyautoattack
import pytest
import torch
from torch import nn

from arnas.attacks import AutoAttack
from arnas.attacks.autoattack import PARTS, target_classes
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
    assert tuple(broken) == PARTS  # none was left without samples
    assert broken["square"] and sum(broken.values()) >= 2
    assert (adversarial - images).abs().max() <= 0.2 + 1e-6 and adversarial.min() >= 0 and adversarial.max() <= 1
    assert capsys.readouterr() == ("", "")


def test_each_part_reports_what_it_broke_and_the_warnings_of_the_library(digits, capsys, caplog):
    class Staircase(nn.Module):
        def forward(self, images):
            return -torch.cdist(images.flatten(1).round(), digits[0][:4].flatten(1).round())

    images, labels = digits[0][:4], torch.arange(4)
    broken, warnings = {}, {}
    for part in PARTS[1::2]:  # the targeted one follows gradients, Square does not
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


def test_targets_are_nine_or_all_wrong_classes():
    assert [target_classes(classes) for classes in (4, 9, 10, 100)] == [3, 8, 9, 9]
