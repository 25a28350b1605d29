"""Prepare: read a data set, split it, and write the image set that all other stages read."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from arnas import artifacts, objects, runtime
from arnas.config import Prepare
from arnas.data import catalog
from arnas.data.catalog import Source
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
    source = _read(settings)
    _, _, height, width = source.images.shape
    if min(settings.image_size or height, settings.image_size or width) < 8:
        raise InvalidInput(f"prepare: images of {width} x {height} pixels are too small; set image_size to 8 or more.")
    splits = split(source, settings)
    source, splits = _compact(source, splits)
    images = _resized(source.images, settings.image_size)

    content = {
        "settings": settings.model_dump(exclude={"path"}),
        "dataset": settings.dataset,
        "classes": source.classes,
        "shape": list(images.shape[1:]),
        "counts": {name: len(indices) for name, indices in splits.items()},
    }
    with artifacts.publish(output) as scratch:
        scratch.mkdir()
        save_file({"images": images, "labels": source.labels, **splits}, scratch / "images.safetensors")
        digest = artifacts.write(scratch, "image_set", content, origin.report())
    return {
        "digest": digest,
        "dataset": settings.dataset,
        "images": len(images),
        "classes": len(source.classes),
        **{name: len(indices) for name, indices in splits.items()},
    }


def _read(settings: Prepare) -> Source:
    """The data set; one that lies in a bucket is copied to this machine for as long as it is read."""
    if settings.path is None or not objects.is_place(settings.path):
        return catalog.read(settings)
    with tempfile.TemporaryDirectory(prefix="arnas-data-") as folder:
        objects.download(settings.path, Path(folder))
        try:
            return catalog.read(settings.model_copy(update={"path": folder}))
        except InvalidInput as error:
            raise InvalidInput(str(error).replace(folder, settings.path)) from None


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


def _compact(source: Source, splits: dict[str, Tensor]) -> tuple[Source, dict[str, Tensor]]:
    """Leave out the images that are in no split."""
    used = torch.cat(list(splits.values())).sort().values
    if len(used) == len(source.images):
        return source, splits
    place = torch.full((len(source.images),), -1)
    place[used] = torch.arange(len(used))
    kept = Source(source.images[used], source.labels[used], source.classes)
    return kept, {name: place[indices] for name, indices in splits.items()}


def _resized(images: Tensor, side: int | None) -> Tensor:
    """Images resized to a square, antialiased; in chunks, since the arithmetic is in float."""
    if side is None or images.shape[-2:] == (side, side):
        return images
    return torch.cat([resize(chunk, [side, side], antialias=True) for chunk in images.split(1000)])
