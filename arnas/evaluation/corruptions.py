"""Common corruptions that no adversary chose (Hendrycks and Dietterich 2019, arXiv 1903.12261).

Four of them, one of each family that needs no pictures of its own: Gaussian noise, Gaussian blur, contrast and JPEG, at
the five severities that CIFAR-10-C and CIFAR-100-C were made with. As there, a corrupted image has 256 grey levels,
rounded down.
"""

# No library has them: imagecorruptions (last release 2020), imagenet-c (2018) and corrupt-tta have the severities of
# ImageNet-C, which are others, and OpenCV with it; kornia and torchvision have the means and no severities. So the
# formulas are here, and tests compare them with numpy, scipy and Pillow.

import io
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from arnas import runtime
from arnas.evaluation.statistics import Score, score

SEVERITIES = (1, 2, 3, 4, 5)


def noise(images: Tensor, severity: int) -> Tensor:
    """Add normal noise; as in attacks, a sample's is its own (`runtime.drawing`)."""
    deviation = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return images + runtime.draw(torch.randn_like, images).mul(deviation)


def blur(images: Tensor, severity: int) -> Tensor:
    """Convolve with a Gaussian, cut off at four standard deviations; beyond the border its last pixel repeats."""
    deviation = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    border = int(4 * deviation + 0.5)
    width = 2 * border + 1
    padded = functional.pad(images, [border] * 4, padding_mode="edge")  # torchvision's blur would mirror the image
    blurred = functional.gaussian_blur(padded, [width, width], [deviation, deviation])
    return blurred[..., border:-border, border:-border]  # type: ignore[no-any-return]


def contrast(images: Tensor, severity: int) -> Tensor:
    """Draw every pixel to the mean of its channel in the image."""
    share = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    means = images.mean((2, 3), keepdim=True)
    return means + share * (images - means)


def jpeg(images: Tensor, severity: int) -> Tensor:
    """Compress and decompress, one image after the other, on the CPU."""
    quality = (80, 65, 58, 50, 40)[severity - 1]
    pixels = (255 * images).round().to(torch.uint8).cpu()
    # Pillow's, as theirs: torchvision is to lose its own
    decoded = [functional.pil_to_tensor(_jpeg(functional.to_pil_image(image), quality)) for image in pixels]
    return torch.stack(decoded).to(images) / 255


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


CORRUPTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "jpeg": jpeg,
}


def corrupt(name: str, images: Tensor, severity: int) -> Tensor:
    """Corrupt images.

    Args:
        name: One of `CORRUPTIONS`.
        images: Floats [N, C, H, W] in [0, 1], of one or three channels.
        severity: 1 to 5.

    Returns:
        Images like them, of multiples of 1/255.
    """
    corrupted = 255 * CORRUPTIONS[name](images, severity).clamp(0, 1)
    # the grey levels that JPEG gives must not fall to the next one by rounding
    return (corrupted + 1e-3).floor() / 255


def scores(right: Tensor) -> tuple[dict[str, dict[str, Score]], Score | None]:
    """Accuracy by corruption and severity, and over all of them; nothing of no images.

    The views of one image are not independent: the interval over all is as wide as if each image were seen once.

    Args:
        right: bool [n, corruptions, severities], in the order of `CORRUPTIONS`.
    """
    if not len(right):
        return {}, None
    table = {
        name: {str(severity): score(count, len(right)) for severity, count in zip(SEVERITIES, row, strict=True)}
        for name, row in zip(CORRUPTIONS, right.sum(0).tolist(), strict=True)
    }
    correct, total = int(right.sum()), right.numel()
    interval = score(round(len(right) * correct / total), len(right))["interval"]
    return table, {"correct": correct, "total": total, "accuracy": correct / total, "interval": interval}
