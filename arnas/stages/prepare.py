"""Prepare: read a data set, split it, and write the image set that all other stages read."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from arnas import artifacts, objects, runtime
from arnas.config import Prepare
from arnas.data import catalog, image_set
from arnas.data.source import Rows, Source, chunk
from arnas.errors import InvalidInput


def run(output: str | Path, settings: Prepare) -> dict[str, Any]:
    """Write an image set: images, labels, and which of them train, select and test.

    The data set's own test part is the test split; without one, `test_fraction` of the images are. Of the rest,
    `holdout_fraction` selects models (split holdout), and the remainder falls in two halves: one trains the weights
    of a search, the other its architecture; a network that is retrained sees both. Every cut is stratified: each class
    gets its share to within one image. Each split is in a random order, so that its first n images are a fair sample.

    Args:
        output: Folder to write.
        settings: Data set, sizes and seed.

    Returns:
        digest, dataset, number of images and of classes, size of each split.

    Raises:
        InvalidInput: The data cannot be read, or there are too few images for a split.
    """
    artifacts.require_writable(output)
    origin = runtime.Origin()
    with Rows(Path(output).parent) as rows:
        source = _read(settings, rows, Path(output).parent)
        channels, height, width = rows.shape
        sides = (settings.image_size or height, settings.image_size or width)
        if min(sides) < 8:
            raise InvalidInput(
                f"prepare: images of {width} x {height} pixels are too small; set image_size to 8 or more."
            )
        splits = split(source, settings)
        used, splits = _compact(splits, len(rows))
        content = {
            "settings": settings.model_dump(exclude={"path", "download"}),
            "dataset": settings.dataset,
            "classes": source.classes,
            "shape": [channels, *sides],
            "counts": {name: len(indices) for name, indices in splits.items()},
            "damaged": list(source.damaged),
        }
        with artifacts.publish(output) as scratch:
            scratch.mkdir()
            image_set.write(
                scratch / "images.safetensors",
                _resized(rows, used, sides),
                (len(used), channels, *sides),
                {"labels": source.labels[used], **splits},
            )
            figures = origin.report()
            digest = artifacts.write(scratch, "image_set", content, figures)
    runtime.say(
        "prepare",
        f"{len(used)} images in {figures['seconds']:.1f} s, with {figures['peak_memory_mib']} MiB of memory at most.",
    )
    return {
        "digest": digest,
        "dataset": settings.dataset,
        "images": len(used),
        "classes": len(source.classes),
        **{name: len(indices) for name, indices in splits.items()},
    }


def _read(settings: Prepare, rows: Rows, beside: Path) -> Source:
    """The data set; one in a bucket, or downloaded to no path, is beside the output for as long as it is read."""
    stored = settings.path is not None and objects.is_place(settings.path)
    if not stored and not (settings.download and settings.path is None):
        return catalog.read(settings, rows)
    with tempfile.TemporaryDirectory(prefix=".arnas-data-", dir=beside) as folder:
        if stored:
            objects.download(str(settings.path), Path(folder))
        try:
            return catalog.read(settings.model_copy(update={"path": folder}), rows)
        except InvalidInput as error:
            raise InvalidInput(str(error).replace(folder, settings.path or "the download")) from None


def split(source: Source, settings: Prepare) -> dict[str, Tensor]:
    """Indices int64 into the source's images for test, holdout, weights and architecture; disjoint.

    Raises:
        InvalidInput: A split would be empty, or a class would be missing from training.
    """
    runtime.seed(settings.seed, "prepare")
    labels = source.labels
    every = torch.arange(len(labels))
    if source.test is None:
        test, training = _sample(every, labels, round(settings.test_fraction * len(every)))
    else:
        test, training = source.test, every[~torch.isin(every, source.test)]
    test, _ = _sample(test, labels, settings.test_limit)
    training, _ = _sample(training, labels, settings.train_limit)
    holdout, training = _sample(training, labels, round(settings.holdout_fraction * len(training)))
    weights, architecture = _sample(training, labels, len(training) // 2)

    splits = {"weights": weights, "architecture": architecture, "holdout": holdout, "test": test}
    _require_images(splits, source)
    return {name: indices[torch.randperm(len(indices))] for name, indices in splits.items()}


def _sample(indices: Tensor, labels: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    """Draw `count` of the indices (None: all), each class's share to within one image; those drawn and the others."""
    if count is None or count >= len(indices):
        return indices, indices[:0]
    labels = labels[indices]
    sizes = labels.bincount()
    quotas, remainders = sizes * count // len(indices), sizes * count % len(indices)
    # what rounding down has left over goes to the largest remainders; the shuffle breaks ties at random
    shuffled = torch.randperm(len(sizes))
    by_remainder = shuffled[remainders[shuffled].argsort(descending=True, stable=True)]
    quotas[by_remainder[: count - int(quotas.sum())]] += 1

    drawn = torch.zeros(len(indices), dtype=torch.bool)
    for label, quota in enumerate(quotas.tolist()):
        members = (labels == label).nonzero().flatten()
        drawn[members[torch.randperm(len(members))[:quota]]] = True
    return indices[drawn], indices[~drawn]


def _require_images(splits: dict[str, Tensor], source: Source) -> None:
    sizes = ", ".join(f"{name} {len(indices)}" for name, indices in splits.items())
    for name, indices in splits.items():
        if not len(indices):
            raise InvalidInput(
                f"prepare: there are too few images: split {name} is empty ({sizes}); raise the limits or fractions."
            )
    for name in ("weights", "architecture"):
        present = source.labels[splits[name]].bincount(minlength=len(source.classes))
        if not present.all():
            missing = source.classes[int(present.argmin())]
            raise InvalidInput(
                f"prepare: split {name} has no image of class {missing!r} ({sizes}); each class needs two "
                "training images at least: raise train_limit, or lower holdout_fraction or test_fraction."
            )


def _compact(splits: dict[str, Tensor], count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Indices of the images that are in a split, and the splits as places among those."""
    used = torch.cat(list(splits.values())).sort().values
    place = torch.full((count,), -1)
    place[used] = torch.arange(len(used))
    return used, {name: place[indices] for name, indices in splits.items()}


def _resized(rows: Rows, indices: Tensor, sides: tuple[int, int]) -> Iterator[Tensor]:
    """The images, in chunks, resized where they have other sides."""
    progress = runtime.Progress("prepare", len(indices), unit="image")
    step = min(chunk(rows.shape), chunk((rows.shape[0], *sides)))
    for images in rows.read(indices, step):
        if images.shape[-2:] != sides:
            images = functional.interpolate(images, sides, mode="bilinear", antialias=True)
        yield images
        progress.advance(count=len(images))
    progress.close()
