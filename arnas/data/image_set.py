"""Image sets as they are used: on the device, or streamed to it from their file; augmentation without a loader."""

import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from arnas import artifacts, runtime
from arnas.config import Augmentation
from arnas.errors import InvalidInput

SPLITS = ("weights", "architecture", "holdout", "test")

#: Images that would take more than this share of the device's free memory stay in their file
RESIDENT_SHARE = 0.25


@dataclass(frozen=True)
class ImageSet:
    """An image set, used on the device of its labels.

    Attributes:
        images: uint8 [N, C, H, W], on the device, or as they lie in `file`.
        labels: int64 [N], in [0, number of classes).
        splits: int64 vectors of indices into `images`, by the names of `SPLITS`; disjoint, each in a random order.
        classes: Names of the classes.
        shape: (C, H, W) of one image.
        digest: Digest of the artifact.
        content: What the artifact says of itself.
        file: The file that images are read from when they are used; None where they are on the device.
    """

    images: Tensor
    labels: Tensor
    splits: Mapping[str, Tensor]
    classes: list[str]
    shape: tuple[int, int, int]
    digest: str
    content: Mapping[str, Any]
    file: Path | None = None

    @property
    def device(self) -> torch.device:
        """Where batches come to be used."""
        return self.labels.device

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W], float in [0, 1], and labels [B], both on the device, by indices int64 [B]."""
        images = self.images[indices.to(self.images.device)].to(self.device)
        return as_pixels(images), self.labels[indices.to(self.device)]

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The images in an order, batch by batch; from a file, the next batch is read while one is used.

        Nothing is being read any more once the iterator is used up or dropped, as a loop does that is left.

        Args:
            order: Indices int64 [..., n]; cut along the last dimension, where the last batch may be smaller.
            size: Indices of a batch along it.

        Yields:
            Images uint8 [..., size, C, H, W] and labels [..., size], on the device.

        Raises:
            InvalidInput: The file cannot be read any more.
        """
        parts = order.to(self.images.device).split(size, -1) if order.numel() else ()
        if self.file is None:
            yield from ((self.images[part], self.labels[part]) for part in parts)
        else:
            with ThreadPoolExecutor(1, "images") as thread:
                yield from self._streamed(parts, thread)

    def _streamed(self, parts: Sequence[Tensor], thread: ThreadPoolExecutor) -> Iterator[tuple[Tensor, Tensor]]:
        """Two buffers in turn: the thread fills one while the other is on its way to the device.

        The thread itself never calls the device, which may be recording a CUDA graph.
        """
        largest, cuda = max((part.numel() for part in parts), default=0), self.device.type == "cuda"
        buffers = [torch.empty((largest, *self.shape), dtype=torch.uint8, pin_memory=cuda) for _ in range(2)]
        copied = [torch.cuda.Event() for _ in range(2)] if cuda else []

        def read(number: int) -> Tensor:
            indices = parts[number].flatten()
            return torch.index_select(self.images, 0, indices, out=buffers[number % 2][: len(indices)])

        coming = [thread.submit(read, 0)] if parts else []
        for number, part in enumerate(parts):
            try:
                images = coming.pop().result().view(*part.shape, *self.shape)
            except Exception as error:  # of whatever kind: it is the reading that failed
                raise InvalidInput(f"{self.file} cannot be read any more ({error}); mend its disk.") from error
            images = images.to(self.device, non_blocking=True, copy=True)
            if cuda:
                copied[number % 2].record(torch.cuda.current_stream(self.device))
                copied[(number + 1) % 2].synchronize()
            if number + 1 < len(parts):
                coming.append(thread.submit(read, number + 1))
            yield images, self.labels[part.to(self.device)]


def load(path: str | Path, device: torch.device | str = "cpu") -> ImageSet:
    """Load an image set, as written by the prepare stage, for use on a device.

    Images that take at most `RESIDENT_SHARE` of its free memory go there; others stay in their file. Either way the
    batches are the same.

    Raises:
        InvalidInput: `path` is no image set, or it is damaged.
    """
    body = artifacts.read(path, "image_set")
    file, device = Path(path) / "images.safetensors", torch.device(device)
    resident = file.stat().st_size <= RESIDENT_SHARE * runtime.free_memory(device)
    tensors = load_file(file, device=str(device)) if resident else _mapped(file)
    channels, height, width = body["content"]["shape"]
    return ImageSet(
        images=tensors["images"],
        labels=tensors["labels"].to(device),
        splits={name: tensors[name].to(device) for name in SPLITS},
        classes=body["content"]["classes"],
        shape=(channels, height, width),
        digest=body["digest"],
        content=body["content"],
        file=None if resident else file,
    )


def write(file: Path, images: Iterable[Tensor], shape: Sequence[int], others: Mapping[str, Tensor]) -> None:
    """Write the safetensors file of an image set, the same as safetensors itself would, but without holding the images.

    Args:
        file: Place of the file.
        images: All images in their order, uint8 [n, C, H, W], some at a time.
        shape: (N, C, H, W) of all together.
        others: Labels and splits, int64 [...], by name.
    """
    header, end = {}, 0
    for name, tensor in sorted(others.items()):
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": "I64", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header["images"] = {"dtype": "U8", "shape": list(shape), "data_offsets": [end, end + math.prod(shape)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in sorted(others.items()):
            opened.write(tensor.contiguous().numpy().data)
        for some in images:
            opened.write(some.contiguous().numpy().data)


def _mapped(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, the images mapped and not read.

    The map is read-only: for one that can be written, as torch's and safetensors' can, the system must promise as much
    memory as the file is long, and refuses where it has less.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        entry = json.loads(opened.read(length))["images"]
    pixels = np.memmap(file, np.uint8, "r", 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that these images cannot be written, and nobody does
        images = torch.from_numpy(pixels)
    with safe_open(file, "np") as content:
        return {"images": images} | {name: torch.from_numpy(content.get_tensor(name)) for name in ("labels", *SPLITS)}


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
