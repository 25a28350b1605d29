"""A data set on its way through `prepare`: images in a file and not in memory, so that they may be more than fit."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from arnas.errors import InvalidInput

#: Bytes that are worked on at once
CHUNK = 2**24


class Rows:
    """Images of one shape, uint8 [N, C, H, W], appended once and read by their indices.

    The file has no name: it is gone when it is closed, also by SIGKILL. It is not mapped, since pages that are mapped
    count as memory of the process.

    Attributes:
        channels: How many channels of an image are read, of those that were appended.

    Args:
        folder: Where there is room for it (default: the folder for temporary files).
    """

    def __init__(self, folder: str | Path | None = None):
        self.channels = 0
        self._stored: tuple[int, ...] = ()
        self._count = 0
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with suppress(OSError):  # a disk that was full is so still, when what was not written is to be
            self._file.close()

    def __len__(self) -> int:
        return self._count

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image as it is read."""
        return (self.channels, *self._stored[1:])

    def append(self, images: np.ndarray) -> None:
        """Write images, uint8 [n, C, H, W], in whatever order they lie in memory, behind those that are there.

        Raises:
            InvalidInput: There is no room.
        """
        self._stored, self.channels = images.shape[1:], images.shape[1]
        step = chunk(self._stored)
        try:
            self._file.seek(0, 2)
            for first in range(0, len(images), step):
                self._file.write(np.ascontiguousarray(images[first : first + step]).data)
            self._file.flush()
        except OSError as error:
            raise InvalidInput(
                f"{self._folder or tempfile.gettempdir()} cannot hold the images: {error.strerror}; name an "
                "output in a folder with space."
            ) from None
        self._count += len(images)

    def read(self, indices: Tensor, step: int) -> Iterator[Tensor]:
        """Images by their indices, int64 [n], as uint8 [at most step, C, H, W] at a time."""
        size = int(np.prod(self._stored))
        for part in indices.split(step):
            images = np.empty((len(part), *self._stored), np.uint8)
            for image, index in zip(images, part.tolist(), strict=True):
                self._file.seek(index * size)
                self._file.readinto(image)
            yield torch.from_numpy(images[:, : self.channels]).contiguous()


@dataclass(frozen=True)
class Source:
    """A data set as read.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], in [0, number of classes).
        classes: Names of the classes.
        test: Indices, int64, of the images that the data set itself keeps for testing; None where it keeps none.
        damaged: Files that were left out, named below the data set's folder.
    """

    images: Rows
    labels: Tensor
    classes: list[str]
    test: Tensor | None = None
    damaged: Sequence[str] = ()


def chunk(shape: tuple[int, ...]) -> int:
    """How many images of a shape (C, H, W) are worked on at once."""
    return max(1, CHUNK // int(np.prod(shape)))
