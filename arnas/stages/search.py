"""Stage search: from an image set to a searched supernet."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from arnas import artifacts, proof, runtime
from arnas.checkpoints import CheckpointStore, Keeper
from arnas.config import Search
from arnas.data import image_set
from arnas.errors import InvalidInput
from arnas.search.combination import combination
from arnas.search.loop import COLUMNS, History, layout, search
from arnas.space.layout import choose_stem_stride
from arnas.space.supernet import Supernet


def run(
    images: str | Path,
    output: str | Path,
    settings: Search,
    *,
    checkpoints: str | Path,
    device: str = "auto",
    gpus: int = 0,
) -> dict[str, Any]:
    """Search for a genotype on the weights and architecture halves of an image set.

    Args:
        images: Image set, as written by prepare.
        output: Folder to write the supernet to: its weights, architecture parameters and history.
        settings: Settings of the search.
        checkpoints: Folder or s3://BUCKET/PREFIX; unfinished work goes on from there, finished work is reused.
        device: auto, cpu, cuda, cuda:N or mps.
        gpus: GPUs that the task was promised; it is an error to see fewer.

    Returns:
        digest, epochs, final losses, and the number of collapsed cells.

    Raises:
        InvalidInput: A setting does not fit the data, or an input or output cannot be used.
        Diverged: A loss is not finite.
        Interrupted: The process was asked to stop; its state is saved.
    """
    artifacts.require_writable(output)
    store = CheckpointStore.open(checkpoints)
    origin = runtime.Origin(runtime.prepare(device, gpus))
    data = image_set.load(images, origin.device)
    _check(data, settings)
    proof.prove(origin.device)
    packages = ("kernels", "space", "data", "attacks", "search")
    key = runtime.key("search", origin.device, packages, settings=settings.model_dump(), images=data.digest)
    with Keeper(store, key, "search") as keeper:
        supernet, history = search(data, settings, keeper)
    collapses = history.collapses(settings)
    for message in collapses:
        runtime.say("search", f"warning: {message}")
    digest = _write(output, supernet, history, data, settings, origin)
    last = dict(zip(COLUMNS, history.steps[-1], strict=True))
    figures = {name: last[name] for name in ("natural_loss", "adversarial_loss", "gamma")}
    return {"digest": digest, "epochs": settings.epochs, "collapsed_cells": len(collapses)} | figures


def _check(data: image_set.ImageSet, settings: Search) -> None:
    smallest = min(len(data.splits["weights"]), len(data.splits["architecture"]))
    if settings.batch_size > smallest:
        raise InvalidInput(
            f"batch_size {settings.batch_size} is larger than a half of the training set; at most {smallest} fit."
        )
    image_set.require_fit(settings, data.shape)
    layout(settings)
    combination(settings.combination)


def _write(
    output: str | Path,
    supernet: Supernet,
    history: History,
    data: image_set.ImageSet,
    settings: Search,
    origin: runtime.Origin,
) -> str:
    content = {
        "settings": settings.model_dump(),
        "images": data.digest,
        "data": {"dataset": data.content["dataset"], "classes": data.classes, "shape": data.shape},
        "layout": str(layout(settings)),
        "stem_stride": choose_stem_stride(settings.stem_stride, data.shape),
        "genotype": history.epochs[-1]["genotype"],
        "collapse": history.collapses(settings),
    }
    with artifacts.publish(output) as folder:
        folder.mkdir()
        save_file(
            {name: tensor.contiguous() for name, tensor in supernet.state_dict().items()},
            folder / "supernet.safetensors",
        )
        record = {"columns": COLUMNS} | vars(history)
        (folder / "history.json").write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
        return artifacts.write(folder, "supernet", content, origin.report())
