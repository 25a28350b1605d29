import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from arnas import runtime
from arnas.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt, scores
from arnas.evaluation.statistics import score


@pytest.fixture(scope="module")
def images():
    """[4, 3, 32, 32] of grey levels, some of them at the ends."""
    torch.manual_seed(0)
    return (300 * torch.rand(4, 3, 32, 32) - 20).clamp(0, 255).round() / 255


def levels(images):
    return (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_images_and_go_further_from_themselves_with_severity(images, name, channels):
    images, distances = images[:, :channels], []
    for severity in SEVERITIES:
        torch.manual_seed(0)
        corrupted = corrupt(name, images, severity)
        assert corrupted.shape == images.shape and corrupted.dtype == images.dtype
        assert corrupted.min() >= 0 and corrupted.max() <= 1
        torch.testing.assert_close(255 * corrupted, (255 * corrupted).round(), rtol=0, atol=1e-4)
        distances.append((corrupted - images).norm().item())
    assert distances == sorted(distances) and len(set(distances)) == 5


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_pillows_at_the_published_quality(images, severity):
    quality = [80, 65, 58, 50, 40][severity - 1]
    for corrupted, pixels in zip(levels(corrupt("jpeg", images, severity)), levels(images), strict=True):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        assert np.array_equal(corrupted, np.array(Image.open(file)))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_is_the_published_formula_in_double_precision(images, severity):
    share = [0.75, 0.5, 0.4, 0.3, 0.15][severity - 1]
    pixels = levels(images) / 255
    means = pixels.mean((1, 2), keepdims=True)
    expected = np.uint8(np.clip((pixels - means) * share + means, 0, 1) * 255)
    difference = np.abs(levels(corrupt("contrast", images, severity)).astype(int) - expected)
    assert difference.max() <= 1 and (difference == 0).mean() > 0.99  # single precision, just below a level


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_scipys_gaussian_of_the_published_width(images, severity):
    sigma = [0.4, 0.6, 0.7, 0.8, 1][severity - 1]
    pixels = images.double().numpy()
    blurred = gaussian_filter(pixels, sigma, axes=(2, 3), truncate=4, mode="nearest")
    expected = np.uint8(255 * blurred).transpose(0, 2, 3, 1)
    difference = np.abs(levels(corrupt("blur", images, severity)).astype(int) - expected)
    assert difference.max() <= 1 and (difference == 0).mean() > 0.99


def test_an_image_smaller_than_the_blur_is_blurred_too(images):
    assert corrupt("blur", images[:, :, :3, :2], 5).shape == (4, 3, 3, 2)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_the_published_deviation(severity):
    grey = torch.full((200, 3, 8, 8), 0.5)
    torch.manual_seed(severity)
    noise = corrupt("noise", grey, severity) - grey
    assert noise.std().item() == pytest.approx([0.04, 0.06, 0.08, 0.09, 0.10][severity - 1], rel=0.02)
    assert abs(noise.mean().item() + 0.5 / 255) < 1e-3  # rounded down


def test_noise_is_the_samples_own(images):
    torch.manual_seed(0)
    whole = corrupt("noise", images, 3)
    torch.manual_seed(0)
    with runtime.drawing(4, torch.tensor([1, 3])):
        part = corrupt("noise", images[[1, 3]], 3)
    assert torch.equal(part, whole[[1, 3]])


def test_scores_count_by_corruption_and_severity_and_all_in_one_as_unsure_as_the_images_are_few():
    torch.manual_seed(0)
    right = torch.rand(50, 4, 5) < torch.linspace(0.9, 0.2, 5)
    table, mean = scores(right)
    assert list(table) == list(CORRUPTIONS) and all(list(row) == ["1", "2", "3", "4", "5"] for row in table.values())
    assert table["blur"]["4"] == score(int(right[:, 1, 3].sum()), 50)
    assert (mean["correct"], mean["total"]) == (int(right.sum()), 1000)
    assert mean["accuracy"] == pytest.approx(
        np.mean([entry["accuracy"] for row in table.values() for entry in row.values()])
    )
    assert mean["interval"][0] < mean["accuracy"] < mean["interval"][1]
    assert mean["interval"][1] - mean["interval"][0] > 0.2
    assert scores(right[:0]) == ({}, None)
