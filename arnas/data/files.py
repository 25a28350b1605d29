"""Data sets of image files: folders of class folders, and Tiny-ImageNet."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from arnas import runtime
from arnas.data.source import Rows, Source, chunk
from arnas.errors import InvalidInput

#: Files that are read and decoded at once, and the bytes that each may take; a larger image is decoded when they are
#: done, alone and in the main thread, since malloc keeps for every thread what that has freed
THREADS, LARGE = 8, 2**25

#: What Pillow says of a file that is no readable image
DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

#: Files of one kind of damage that are named, each in a line of its own
NAMED = 1000


@dataclass(frozen=True)
class Listed:
    """A data set of image files.

    Attributes:
        root: The folder that all lie in.
        files: The files; first those for training.
        labels: Their labels, in [0, number of classes).
        classes: Names of the classes.
        training: How many of them are for training; None where there is no test part.
    """

    root: Path
    files: list[Path]
    labels: list[int]
    classes: list[str]
    training: int | None


def tiny_imagenet(path: Path) -> Listed:
    """Tiny-ImageNet (Stanford CS231N) as published: 200 classes, RGB and some grey, 64 x 64; val is the test part.

    Classes are in the order of their WordNet ids, and named by the first of their words.

    Args:
        path: The folder tiny-imagenet-200, or the one that holds it.

    Raises:
        InvalidInput: A list of it is missing.
    """
    if (path / "tiny-imagenet-200").is_dir():
        path = path / "tiny-imagenet-200"
    ids = sorted(line[0] for line in _table(path / "wnids.txt"))
    words = {line[0]: line[1].split(",")[0] for line in _table(path / "words.txt", columns=2)}
    places = {name: label for label, name in enumerate(ids)}
    training = [(file, places[name]) for name in ids for file in _files(path / "train" / name / "images")]
    given = {line[0]: line[1] for line in _table(path / "val" / "val_annotations.txt", columns=2)}
    labelled = {name for name, wnid in given.items() if wnid in places}
    if others := {file.name for file in _files(path / "val" / "images")} - labelled:
        runtime.say(
            "prepare",
            f"{len(others)} images of val are left out, since val_annotations.txt gives them no class of wnids.txt.",
        )
    test = [(path / "val" / "images" / name, places[given[name]]) for name in sorted(labelled)]
    files, labels = map(list, zip(*training, *test, strict=True)) if training or test else ([], [])
    return Listed(path, files, labels, [words.get(name, name) for name in ids], len(training))


def folder(path: Path) -> Listed:
    """Images in class folders, or in train/ and test/ (or val/) with class folders each; PNG, JPEG and other formats.

    Every file in a class folder is to be an image, however deep, but for those whose name begins with a dot.

    Args:
        path: The folder.

    Raises:
        InvalidInput: Class folders are missing, empty or different in train/ and test/.
    """
    parts = [_class_folders(part) for part in _parts(path)]
    classes = list(parts[0])
    for part, where in zip(parts[1:], _parts(path)[1:], strict=True):
        if odd := sorted(set(classes) ^ set(part)):
            raise InvalidInput(
                f"{where} and {where.parent / 'train'} must have the same class folders, but differ in {_some(odd)}."
            )
    files = [file for part in parts for name in classes for file in part[name]]
    labels = [label for part in parts for label, name in enumerate(classes) for _ in part[name]]
    training = sum(map(len, parts[0].values()))
    return Listed(path, files, labels, classes, training if len(parts) > 1 else None)


def decode(rows: Rows, listed: Listed, image_size: int | None = None, allow_damaged: int = 0) -> Source:
    """Read image files, several at a time. All grey: one channel; otherwise three.

    Args:
        rows: Takes the images.
        listed: The files.
        image_size: Side in pixels that every image is resized to; None where all have the same size.
        allow_damaged: How many files may be left out since they are no readable image, have more than 8 bits a channel
            or, without `image_size`, another size than the first.

    Raises:
        InvalidInput: More files are.
    """
    size = (image_size, image_size) if image_size else _first_size(listed.files)
    step, resize = chunk((3, *size)), image_size is not None
    grey, damaged = True, dict[int, str]()
    progress = runtime.Progress("prepare", len(listed.files), unit="image")
    with ThreadPoolExecutor(THREADS, "decode") as pool:
        for first in range(0, len(listed.files), step):
            some = listed.files[first : first + step]
            beside = list(pool.map(lambda file: _pixels(file, size, resize, LARGE), some))
            pairs = zip(some, beside, strict=True)
            found = [_pixels(file, size, resize) if pixels is None else pixels for file, pixels in pairs]
            damaged |= {index: reason for index, reason in enumerate(found, first) if isinstance(reason, str)}
            if images := [pixels for pixels in found if isinstance(pixels, tuple)]:
                grey = grey and all(image[0] for image in images)
                rows.append(np.stack([image[1] for image in images]).transpose(0, 3, 1, 2))
            progress.advance(count=len(some))
    progress.close()
    _require_few({str(listed.files[index]): reason for index, reason in damaged.items()}, allow_damaged)
    if not len(rows):
        raise InvalidInput(f"{listed.root} holds no readable image; give a folder that does.")
    if grey:
        rows.channels = 1

    kept = torch.ones(len(listed.files), dtype=torch.bool)
    kept[list(damaged)] = False
    training = int(kept[: listed.training].sum())
    return Source(
        images=rows,
        labels=torch.tensor(listed.labels)[kept],
        classes=listed.classes,
        test=None if listed.training is None else torch.arange(training, len(rows)),
        damaged=[listed.files[index].relative_to(listed.root).as_posix() for index in damaged],
    )


def _pixels(
    file: Path, size: tuple[int, int], resize: bool, limit: int | None = None
) -> tuple[bool, np.ndarray] | str | None:
    """Whether an image is grey, and its pixels, uint8 [H, W, 3]; or what is wrong; None where it takes more bytes."""
    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":
                return "more than 8 bits a channel"
            if not resize and image.size != size:
                return f"another size than the first, which has {size[0]} x {size[1]} pixels"
            grey, whole = image.mode in ("1", "L", "LA"), image.size
            if resize:  # a JPEG is decoded smaller, but not below twice the size, from where on it would look another
                image.draft(None, (2 * size[0], 2 * size[1]))
            # a progressive JPEG is held whole all the same; what is no RGB is there twice while it is converted
            held = math.prod(whole if "progressive" in image.info else image.size)
            if limit and held * (4 if image.mode == "RGB" else 8) > limit:
                return None
            image.load()
            coloured = image if image.mode == "RGB" else image.convert("RGB")
            if coloured.size != size:
                coloured = coloured.resize(size, Image.Resampling.BILINEAR)  # antialiased, in Pillow
            return grey, np.asarray(coloured)
    except DAMAGE:
        return "no readable image"


def _first_size(files: list[Path]) -> tuple[int, int]:
    """Width and height of the first image that can be opened."""
    for file in files:
        try:
            with Image.open(file) as image:
                return image.size
        except DAMAGE:
            continue
    return (1, 1)


def _require_few(damaged: dict[str, str], allowed: int) -> None:
    """Name the damaged files, given with what is wrong with each; refuse more of them than are allowed."""
    kinds: dict[str, list[str]] = {}
    for file, reason in damaged.items():
        kinds.setdefault(reason, []).append(file)
    for reason, names in kinds.items():
        for file in names[:NAMED]:
            runtime.say("prepare", f"{reason}: {file}")
        if len(names) > NAMED:
            runtime.say("prepare", f"{reason}: {len(names) - NAMED} more files")
    if len(damaged) > allowed:
        told = "; ".join(f"{reason}: {_some(names)}" for reason, names in kinds.items())
        resizing = "set prepare.image_size to resize them, or " if any("size" in reason for reason in kinds) else ""
        raise InvalidInput(
            f"{told[0].upper()}{told[1:]}; replace, convert or remove these files, {resizing or 'or '}set "
            f"prepare.allow_damaged to {len(damaged)} to leave them out."
        )
    if damaged:
        runtime.say("prepare", f"{len(damaged)} damaged files are left out.")


def _table(file: Path, columns: int = 1) -> list[list[str]]:
    """The lines of a list of Tiny-ImageNet, cut at tabs; those that are empty left out."""
    lines = [line.split("\t") for line in file.read_text("utf-8", "replace").splitlines() if line.strip()]
    if short := [line for line in lines if len(line) < columns]:
        raise InvalidInput(f"{file} is damaged: it has a line {short[0][0]!r}; unpack the archive again.")
    return lines


def _parts(path: Path) -> list[Path]:
    """train/ and test/ (or val/) where they hold class folders, otherwise the folder itself."""
    train, *tests = [
        path / name for name in ("train", "test", "val") if (path / name).is_dir() and _has_folders(path / name)
    ] or [path]
    if train.name in ("test", "val") and train != path:
        raise InvalidInput(f"{path} has {train.name}/ but no train/ with class folders.")
    return [train, *tests[:1]]


def _has_folders(path: Path) -> bool:
    return any(entry.is_dir() for entry in path.iterdir())


def _class_folders(path: Path) -> dict[str, list[Path]]:
    """The files of every class folder, in the order of their names."""
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(names) < 2:
        raise InvalidInput(f"{path} needs two class folders of images at least, but has {len(names)}.")
    found = {name: _files(path / name) for name in names}
    if empty := [name for name, files in found.items() if not files]:
        raise InvalidInput(f"{path}: class folder {_some(empty)} holds no image; fill it or remove it.")
    return found


def _files(path: Path) -> list[Path]:
    """The files in a folder and those below it, in a fixed order."""

    def unreadable(error: OSError) -> None:
        raise error

    return [
        Path(place, name)
        for place, _, names in sorted(os.walk(path, onerror=unreadable, followlinks=True))
        for name in sorted(names)
        if not name.startswith(".")
    ]


def _some(names: list[str]) -> str:
    """The first three of some names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
