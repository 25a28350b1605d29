"""Sizes against those counted from the published genotype, auxiliary head left out."""

import pytest

from arnas.errors import InvalidInput
from arnas.space.size import info


@pytest.mark.parametrize(
    ("channels", "layers", "classes", "image_size", "million_parameters", "giga_macs"),
    [
        (64, 20, 10, 32, 4.520, 1.240),
        (64, 20, 100, 32, 4.567, None),
        (36, 20, 10, 32, 1.534, 0.424),
        (84, 14, 200, 64, 5.406, None),
    ],
)
def test_the_published_genotype_has_its_published_size(
    channels, layers, classes, image_size, million_parameters, giga_macs
):
    size = info("arnas-cifar10", channels=channels, layers=layers, classes=classes, image_size=image_size)
    assert round(size["parameters"] / 1e6, 3) == million_parameters
    assert giga_macs is None or round(size["macs"] / 1e9, 3) == giga_macs


def test_the_supernet_has_its_published_size():
    size = info(None, supernet=True, channels=24, layers=8)
    assert round(size["parameters"] / 1e6, 3) == 1.883
    assert round(size["macs"] / 1e9, 3) == 0.461


def test_macs_scale_with_the_number_of_pixels():
    small, large = (info("arnas-cifar10", channels=8, layers=8, image_size=side) for side in (16, 32))
    head = 4 * 2 * 8 * 10
    assert large["macs"] - head == 4 * (small["macs"] - head)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "arnas-cifar"}, "no genotype 'arnas-cifar'"),
        ({"name": "arnas-cifar10", "image_size": 4}, "image size 4"),
        ({"name": "arnas-cifar10", "layout": "A1 X2"}, "'X2'"),
        ({"name": None}, "Name a genotype"),
    ],
)
def test_what_cannot_be_sized_is_refused_in_a_sentence(arguments, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        info(**{"channels": 8, "layers": 8} | arguments)
