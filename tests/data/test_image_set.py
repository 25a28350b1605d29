import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from arnas import config
from arnas.data import image_set
from arnas.data.image_set import augment
from arnas.errors import InvalidInput
from arnas.stages import prepare


def random_images(count=64, channels=3, height=9, width=7):
    return torch.randint(
        1, 256, (count, channels, height, width), dtype=torch.uint8
    )  # no zeros: those are ours to find


def windows(image, padding):
    """Every window of the padded image, by its upper left corner."""
    height, width = image.shape[1:]
    padded = functional.pad(image, [padding] * 4)
    return {
        (row, column): padded[:, row : row + height, column : column + width]
        for row in range(2 * padding + 1)
        for column in range(2 * padding + 1)
    }


def test_without_changes_images_are_scaled_to_0_1():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(augment(images), torch.arange(256).reshape(1, 1, 16, 16) / 255)


@settings(max_examples=20, deadline=None)
@given(padding=st.integers(1, 4), channels=st.sampled_from([1, 3]), seed=st.integers(0, 2**32))
def test_a_crop_is_a_window_of_the_padded_image(padding, channels, seed):
    torch.manual_seed(seed)
    images = random_images(8, channels)
    for image, changed in zip(images, augment(images, crop_padding=padding), strict=True):
        assert any(torch.equal(changed, window / 255) for window in windows(image, padding).values())


def test_every_window_is_drawn_about_equally_often():
    torch.manual_seed(0)
    image = random_images(1)
    corners = windows(image[0], 1)
    changed = augment(image.expand(1800, -1, -1, -1), crop_padding=1)
    counts = [sum(torch.equal(one, window / 255) for one in changed) for window in corners.values()]
    assert sum(counts) == 1800
    assert min(counts) > 140 and max(counts) < 260  # 200 expected, standard deviation 13


def test_a_flip_is_the_mirror_image_and_hits_about_half():
    torch.manual_seed(0)
    images = random_images(1000)
    pixels = images / 255
    changed = augment(images, flip=True)
    kept = (changed == pixels).flatten(1).all(1)
    mirrored = (changed == pixels.flip(3)).flatten(1).all(1)
    assert torch.all(kept ^ mirrored)
    assert 420 < mirrored.sum() < 580  # 500 expected, standard deviation 16


def test_crop_and_flip_together_give_a_window_or_its_mirror():
    torch.manual_seed(0)
    images = random_images(40)
    for image, changed in zip(images, augment(images, crop_padding=2, flip=True), strict=True):
        candidates = [window / 255 for window in windows(image, 2).values()]
        assert any(torch.equal(changed, one) or torch.equal(changed, one.flip(2)) for one in candidates)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 20])
def test_cutout_blanks_a_square_around_any_pixel_and_nothing_else(side):
    torch.manual_seed(0)
    images = random_images(2000)
    changed = augment(images, cutout=side)
    blank = (changed == 0).all(1)
    assert torch.equal(changed, torch.where(blank[:, None], 0.0, images / 255))

    rows, columns = blank.any(2), blank.any(1)
    assert torch.equal(blank, rows[:, :, None] & columns[:, None, :])  # a rectangle, if both are intervals
    for hit in (rows, columns):
        assert torch.all(hit.sum(1) >= 1) and torch.all(hit.sum(1) <= side)
        assert torch.all((hit[:, 1:] & ~hit[:, :-1]).sum(1) + hit[:, 0] == 1)
    assert blank.sum((1, 2)).max() == min(side, 9) * min(side, 7)  # a whole square occurs
    assert torch.all(blank.float().mean(0) > 0)  # every pixel is blanked now and then


def test_pixels_stay_in_0_1_and_images_change_each_for_itself():
    torch.manual_seed(0)
    images = random_images(1).expand(50, -1, -1, -1)
    changed = augment(images, crop_padding=4, flip=True, cutout=3)
    assert changed.shape == images.shape and changed.dtype == torch.float32
    assert changed.min() >= 0 and changed.max() <= 1
    assert len({one.numpy().tobytes() for one in changed}) > 25


def test_the_global_generator_decides():
    images = random_images()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(images, crop_padding=4, flip=True, cutout=3))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_loaded_set_gives_batches_by_index(tmp_path):
    report = prepare.run(tmp_path / "set", config.Prepare(dataset="digits"))
    images = image_set.load(tmp_path / "set")
    assert images.digest == report["digest"]
    assert images.shape == (1, 8, 8)
    assert images.classes == [str(digit) for digit in range(10)]
    assert set(images.splits) == {"weights", "architecture", "holdout", "test"}

    indices = images.splits["test"][:5]
    pixels, labels = images.batch(indices)
    assert pixels.dtype == torch.float32 and pixels.shape == (5, 1, 8, 8)
    assert torch.equal((pixels * 255).round().to(torch.uint8), images.images[indices])
    assert torch.equal(labels, images.labels[indices])


def test_a_damaged_set_is_refused(tmp_path):
    prepare.run(tmp_path / "set", config.Prepare(dataset="digits"))
    file = tmp_path / "set" / "images.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InvalidInput, match=r"images\.safetensors is missing or damaged"):
        image_set.load(tmp_path / "set")
