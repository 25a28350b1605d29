"""What the figures of search and training show, as numbers: for the plots, and for the document."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

POINTS = 240  # of a curve, at most: longer histories are averaged in as many equal pieces
STEPS = ("train_loss", "adversarial_loss", "natural_loss", "gamma", "natural_norm", "adversarial_norm")


def column(history: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """A figure of every step of a search; `history` as in a supernet's history.json."""
    return np.array(history["steps"], dtype=float)[:, history["columns"].index(name)]


def curve(history: Mapping[str, Any], name: str) -> dict[str, NDArray[np.float64]]:
    """The same in equal pieces: epochs passed at each end, and means; of a long history also least and largest."""
    values = column(history, name)
    pieces = np.array_split(values, min(POINTS, len(values)))
    ends = np.cumsum([len(piece) for piece in pieces]) / len(values) * len(history["epochs"])
    found = {"epochs": ends, "mean": np.array([piece.mean() for piece in pieces])}
    if len(pieces) < len(values):
        found["least"] = np.array([piece.min() for piece in pieces])
        found["largest"] = np.array([piece.max() for piece in pieces])
    return found


def weights(history: Mapping[str, Any], kind: str) -> NDArray[np.float64]:
    """Weight of each operation, mean over a cell's edges [epochs, operations]."""
    return np.array([np.mean(epoch["weights"][kind], axis=0) for epoch in history["epochs"]])


def search(history: Mapping[str, Any], operations: Sequence[str]) -> dict[str, Any]:
    """The curves of a search, without the bands of a long one: those would double what the document weighs."""
    epochs = history["epochs"]
    return {
        "epochs_passed": _short(curve(history, STEPS[0])["epochs"]),
        **{name: _short(curve(history, name)["mean"]) for name in STEPS},
        "entropy": {kind: _short([epoch["entropy"][kind] for epoch in epochs]) for kind in epochs[0]["entropy"]},
        "skips": {kind: [epoch["skips"][kind] for epoch in epochs] for kind in epochs[0]["skips"]},
        "weights": {
            kind: {name: _short(weights(history, kind)[:, index]) for index, name in enumerate(operations)}
            for kind in epochs[0]["weights"]
        },
    }


def training(history: Mapping[str, Any]) -> dict[str, Any]:
    """The curves of a training, epoch by epoch; `history` as in a model's history.json."""
    return {
        name: _short([epoch[name] for epoch in history["epochs"]]) for name in ("train_accuracy", "clean", "robust")
    }


def _short(values: ArrayLike) -> list[float]:
    """To five digits, which are more than can be seen."""
    return [float(f"{value:.5g}") for value in np.asarray(values)]
