import pytest
import torch
from torch import nn

from arnas.attacks import PGD, Square


def test_result_is_in_the_ball_and_in_the_pixel_range(classifier, digits):
    images, labels = digits[0][:64], digits[1][:64]
    adversarial = Square(0.2, queries=100)(classifier(), images, labels)
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert 0.1 < (adversarial - images).abs().max() <= 0.2 + 1e-6


def test_breaks_what_hides_its_gradient(digits):
    class Staircase(nn.Module):
        """The nearest of a few digits, in an image rounded to two grey levels: no gradient anywhere."""

        def forward(self, images):
            return -torch.cdist(images.flatten(1).round(), digits[0][:10].flatten(1).round())

    model, images, labels = Staircase(), digits[0][:10], torch.arange(10)
    assert (model(PGD(0.3, 0.1, 10)(model, images, labels)).argmax(1) == labels).all()
    assert (model(Square(0.45, queries=300)(model, images, labels)).argmax(1) == labels).float().mean() < 0.8


def test_more_queries_break_no_less(classifier, digits):
    model, images, labels = classifier(), digits[0][:100], digits[1][:100]
    right = [
        (model(Square(0.15, queries)(model, images, labels)).argmax(1) == labels).float().mean().item()
        for queries in (1, 400)
    ]
    assert right[1] < right[0] - 0.05


@pytest.mark.parametrize("seed", [0, 2**55 + 3])
def test_is_deterministic_under_its_seed(classifier, digits, seed):
    model, images, labels = classifier(), digits[0][:32], digits[1][:32]
    first = Square(0.2, queries=30, seed=seed)(model, images, labels)
    torch.rand(7)
    assert torch.equal(Square(0.2, queries=30, seed=seed)(model, images, labels), first)
    assert not torch.equal(Square(0.2, queries=30, seed=seed + 1)(model, images, labels), first)
