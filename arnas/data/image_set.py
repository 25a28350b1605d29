"""Image sets as they are used: all images on the device, batches by index, augmentation without a loader."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from arnas import artifacts
from arnas.config import Augmentation
from arnas.errors import InvalidInput

SPLITS = ("weights", "architecture", "holdout", "test")


@dataclass(frozen=True)
class ImageSet:
    """An image set on a device.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], in [0, number of classes).
        splits: int64 vectors of indices into `images`, by the names of `SPLITS`; disjoint, each in a random order.
        classes: Names of the classes.
        shape: (C, H, W) of one image.
        digest: Digest of the artifact.
        content: What the artifact says of itself.
    """

    images: Tensor
    labels: Tensor
    splits: Mapping[str, Tensor]
    classes: list[str]
    shape: tuple[int, int, int]
    digest: str
    content: Mapping[str, Any]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W], float in [0, 1], and labels [B], both on the device of the set, by indices int64 [B]."""
        indices = indices.to(self.images.device)
        return as_pixels(self.images[indices]), self.labels[indices]


def load(path: str | Path, device: torch.device | str = "cpu") -> ImageSet:
    """Load an image set, as written by the prepare stage, onto a device.

    Raises:
        InvalidInput: `path` is no image set, or it is damaged.
    """
    body = artifacts.read(path, "image_set")
    tensors = load_file(Path(path) / "images.safetensors", device=str(device))
    channels, height, width = body["content"]["shape"]
    return ImageSet(
        images=tensors["images"],
        labels=tensors["labels"],
        splits={name: tensors[name] for name in SPLITS},
        classes=body["content"]["classes"],
        shape=(channels, height, width),
        digest=body["digest"],
        content=body["content"],
    )


def augment(images: Tensor, crop_padding: int = 0, flip: bool = False, cutout: int = 0) -> Tensor:
    """Change training images at random, each for itself, with the global generator of their device.

    Args:
        images: uint8 [B, C, H, W].
        crop_padding: Pixels of zeros put around an image before a window of its old size is cut out of it.
        flip: Mirror every other image, on average, left to right.
        cutout: Side in pixels of a square of zeros, whose centre is any pixel (DeVries and Taylor 2017); 0 for none.

    Returns:
        float [B, C, H, W] in [0, 1].
    """
    count, channels, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device).expand(count, height)
    columns = torch.arange(width, device=device).expand(count, width)

    if crop_padding:
        images = functional.pad(images, [crop_padding] * 4)
        offsets = torch.randint(2 * crop_padding + 1, (2, count, 1), device=device)
        rows, columns = rows + offsets[0], columns + offsets[1]
    if flip:
        mirrored = torch.randint(2, (count, 1), device=device).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    if crop_padding or flip:
        image = torch.arange(count, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[:, None, None]
        images = images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]

    pixels = as_pixels(images)
    if cutout:
        inside = _band(count, height, cutout, device)[:, :, None] & _band(count, width, cutout, device)[:, None, :]
        pixels = pixels.masked_fill(inside[:, None], 0.0)
    return pixels


def require_fit(augmentation: Augmentation, shape: tuple[int, int, int], cutout: int = 0) -> None:
    """Refuse to augment images of `shape` (C, H, W) so that nothing of them could be left.

    Raises:
        InvalidInput: crop_padding or cutout is too large.
    """
    side = min(shape[1:])
    if 2 * augmentation.crop_padding > side:
        raise InvalidInput(
            f"crop_padding {augmentation.crop_padding} is too large for images of {side} pixels; "
            f"choose at most {side // 2}."
        )
    if cutout >= side:
        raise InvalidInput(f"cutout {cutout} covers images of {side} pixels; choose less than {side}.")


def as_pixels(images: Tensor) -> Tensor:
    """uint8 to float in [0, 1]."""
    return images.float() / 255


def _band(count: int, length: int, width: int, device: torch.device) -> Tensor:
    """bool [count, length]: `width` places in a row around a random one, cut off at both ends."""
    first = torch.randint(length, (count, 1), device=device) - width // 2
    place = torch.arange(length, device=device)
    return (place >= first) & (place < first + width)
