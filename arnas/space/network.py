"""Networks that are trained and evaluated: derived from a genotype, or a hand-made rival.

A network is described by a JSON object (`describe`), built from it (`build`), and stored with it in a model artifact.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from arnas import artifacts, config, runtime
from arnas.errors import InvalidInput
from arnas.space import foreign, rivals
from arnas.space import genotype as genotypes
from arnas.space.classifier import Classifier
from arnas.space.genotype import Genotype
from arnas.space.layout import NODES, Cell, Layout, choose_stem_stride
from arnas.space.operations import OPERATIONS
from arnas.space.supernet import CellInputs


class DerivedNetwork(Classifier):
    """The network of a genotype: its cells in the order and widths of a layout.

    Args:
        drop_path: Largest probability of dropping an operation's output in training; rises linearly with depth.
        auxiliary: Whether a head after the last reduction classifies too.
        stem_stride: Stride of the first convolution.
    """

    def __init__(
        self,
        genotype: Genotype,
        layout: Layout,
        channels: int,
        classes: int,
        channels_in: int = 3,
        auxiliary: bool = False,
        drop_path: float = 0.0,
        stem_stride: int = 1,
    ):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels_in, 3 * channels, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(3 * channels)
        )
        plan = list(layout.plan(channels))
        self.cells = nn.ModuleList(
            _DerivedCell(cell, genotype, drop_path * index / len(plan)) for index, cell in enumerate(plan)
        )
        self.head = nn.Linear(plan[-1].channels_out, classes)
        self.auxiliary_place = layout.last_reduction() if auxiliary else None
        if self.auxiliary_place is not None:
            self.auxiliary = _AuxiliaryHead(plan[self.auxiliary_place].channels_out, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.with_auxiliary(images)[0]

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        before_last = last = self.stem(images)
        auxiliary = None
        for index, cell in enumerate(self.cells):
            before_last, last = last, cell(before_last, last)
            if self.training and index == self.auxiliary_place:
                auxiliary = self.auxiliary(last)
        return self.head(last.mean((2, 3))), auxiliary


class _DerivedCell(nn.Module):
    def __init__(self, cell: Cell, genotype: Genotype, drop_path: float):
        super().__init__()
        self.inputs = CellInputs(cell, affine=True)
        self.sources = [source for node in genotype.cells[cell.kind] for _, source in node]
        self.operations = nn.ModuleList(
            OPERATIONS[operation](cell.channels, cell.stride if source < 2 else 1, True)
            for node in genotype.cells[cell.kind]
            for operation, source in node
        )
        self.drop_path = drop_path

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = list(self.inputs(before_last, last))
        for node in range(NODES):
            first, second = (self._edge(states, 2 * node + side) for side in (0, 1))
            states.append(first + second)
        return torch.cat(states[2:], 1)

    def _edge(self, states: list[Tensor], index: int) -> Tensor:
        operation = self.operations[index]
        output: Tensor = operation(states[self.sources[index]])
        if self.training and self.drop_path and not isinstance(operation, nn.Identity):
            keep = 1 - self.drop_path
            mask = runtime.draw(torch.rand_like, output[:, :1, :1, :1]) < keep
            output = output * mask / keep
        return output


class _AuxiliaryHead(nn.Sequential):
    def __init__(self, channels: int, classes: int):
        super().__init__(
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, classes),
        )


def describe(
    architecture: str,
    shape: tuple[int, int, int],
    classes: int,
    *,
    channels: int | None = None,
    layers: int = 20,
    layout: str | None = None,
    stem_stride: int | None = None,
    auxiliary: bool = False,
    drop_path: float = 0.0,
) -> dict[str, Any]:
    """The description of a network, for `build`.

    Args:
        architecture: A rival's name (see `config.RIVALS`), a genotype's, or a genotype file.
        shape: Channels, height and width of the images.
        channels: Initial number of filters; None for the number that the architecture was published with.
        layers, layout, auxiliary, drop_path: As in `config.Retrain`; of genotypes, and no part of a rival.
        stem_stride: See `layout.choose_stem_stride`.

    Raises:
        InvalidInput: There is no such architecture, the genotype or layout is malformed, or an auxiliary head has no
            place.
    """
    sizes = {"classes": classes, "channels_in": shape[0], "stem_stride": choose_stem_stride(stem_stride, shape)}
    if architecture in config.RIVALS:
        return {"architecture": architecture, "channels": channels or config.RIVALS[architecture]} | sizes
    genotype, document = genotypes.load(architecture)
    placed = Layout.parse(layout) if layout else Layout.paper(layers, genotypes.widths(document))
    if document["layout"] and (missing := placed.kinds() - Layout.parse(document["layout"]).kinds()):
        raise InvalidInput(
            f"layout {placed} has {' and '.join(sorted(missing))} cells, but genotype {architecture} was searched in "
            f"{document['layout']}, which has none; choose a layout of the kinds that were searched."
        )
    channels = channels or genotypes.channels(document)
    if channels * min(width for _, width in placed.cells) < 2:
        raise InvalidInput(
            f"channels {channels} is too few for layout {placed}: a cell of one filter cannot be halved."
        )
    if auxiliary and placed.last_reduction() is None:
        raise InvalidInput(
            f"layout {placed} has no reduce cell for an auxiliary head; add one, or set auxiliary_weight to 0."
        )
    return {
        "architecture": "genotype",
        "cells": genotype.to_json(),
        "layout": str(placed),
        "channels": channels,
        "auxiliary": auxiliary,
        "drop_path": drop_path,
    } | sizes


def build(description: dict[str, Any]) -> Classifier:
    """Build a network from its description.

    Args:
        description: `architecture` ("genotype" or a rival's name), `channels`, `classes`, `channels_in`, `stem_stride`
            (1 where it is absent); for a genotype also `cells`, `layout`, `auxiliary` (bool) and `drop_path`.

    Raises:
        InvalidInput: The architecture is unknown, or genotype or layout are malformed.
    """
    sizes = {key: description[key] for key in ("channels", "classes", "channels_in")}
    sizes["stem_stride"] = description.get("stem_stride", 1)
    architecture = description["architecture"]
    if architecture == "genotype":
        return DerivedNetwork(
            Genotype.from_json(description["cells"], "network"),
            Layout.parse(description["layout"]),
            auxiliary=description["auxiliary"],
            drop_path=description["drop_path"],
            **sizes,
        )
    if architecture not in rivals.NETWORKS:
        near = config.near(architecture, ["genotype", *rivals.NETWORKS])
        raise InvalidInput(f"There is no architecture {architecture!r}; near it are {near}.")
    return rivals.NETWORKS[architecture](**sizes)


def load_model(
    path: str | Path, device: torch.device | str = "cpu", weights: str = "best"
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model artifact.

    Args:
        path: Folder that the stage retrain wrote, or adopt.
        device: Where the network goes.
        weights: "best" (on the hold-out) or "last"; an adopted network has but one.

    Returns:
        The network, a `Classifier` or `Foreign`, in evaluation mode with frozen parameters, and the artifact's body
        (see `artifacts.read`).

    Raises:
        InvalidInput: The folder is no model, or damaged; its weights are those of another network; or an adopted
            network is not what it was.
    """
    body = artifacts.read(path, "model")
    description = body["content"]["network"]
    network: nn.Module
    if description["architecture"] in foreign.ARCHITECTURES:
        network = foreign.restore(description, Path(path), device)
    else:
        network = build(description)
        file = Path(path) / f"{weights}.safetensors"
        foreign.fill(network, load_file(file), file)
    return network.to(device).eval().requires_grad_(False), body
