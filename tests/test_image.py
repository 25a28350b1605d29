"""The image's name."""

import pytest

import arnas
from arnas._image import IMAGE, require_immutable
from arnas.errors import InvalidInput

DIGEST = "sha256:" + "0a" * 32


def test_the_tag_is_the_version():
    assert IMAGE.rpartition(":")[2] == arnas.__version__


@pytest.mark.parametrize(
    "image",
    [IMAGE, "registry.example.org/arnas:0.1.0", "localhost:5000/team/arnas:0.1.0-cuda", f"host/arnas@{DIGEST}"],
)
def test_an_image_with_a_version_or_a_digest_is_taken(image):
    assert require_immutable(image) == image


@pytest.mark.parametrize(
    "image", ["arnas", "arnas:latest", "localhost:5000/arnas", "host/arnas:latest", "", "host/arnas:", "a b:1"]
)
def test_an_image_that_may_change_is_refused_in_one_sentence(image):
    with pytest.raises(InvalidInput, match=r"does not say which content it means; give one with a version tag") as told:
        require_immutable(image)
    assert image in str(told.value) and "\n" not in str(told.value)
