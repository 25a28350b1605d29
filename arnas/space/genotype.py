"""Genotypes: the discrete architecture that a search ends with, and its file.

A genotype says for each cell kind and each of its 4 nodes which 2 operations come in and from where: inputs 0 and 1
are the outputs of the two cells before, input 2 + n is node n.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arnas import objects
from arnas.artifacts import digest
from arnas.config import CHANNELS, RIVALS, genotypes, near
from arnas.errors import InvalidInput
from arnas.space.layout import KINDS, NODES, WIDTHS
from arnas.space.operations import OPERATIONS

SCHEMA = "arnas.genotype/1"
Node = tuple[tuple[str, int], tuple[str, int]]


@dataclass(frozen=True)
class Genotype:
    """Two (operation, input) pairs for each node of each cell kind."""

    cells: Mapping[str, tuple[Node, ...]]  # kind -> 4 nodes

    @classmethod
    def from_json(cls, cells: Any, place: str) -> "Genotype":
        """Check and read the `cells` of a genotype file.

        Raises:
            InvalidInput: A kind, node, operation or input is missing or unknown; `place` is named.
        """
        if not isinstance(cells, dict) or set(cells) != set(KINDS.values()):
            raise InvalidInput(f"{place}: cells must have exactly the kinds {', '.join(KINDS.values())}.")
        return cls({kind: _read_cell(cells[kind], f"{place}: cells.{kind}") for kind in KINDS.values()})

    def to_json(self) -> dict[str, Any]:
        """The `cells` of a genotype file: kind -> node -> [[operation, input], [operation, input]]."""
        return {kind: [[list(edge) for edge in node] for node in nodes] for kind, nodes in self.cells.items()}

    def skip_connections(self) -> dict[str, int]:
        """Number of skip connections, 0 to 8, of each cell kind."""
        return {
            kind: sum(operation == "skip_connect" for node in nodes for operation, _ in node)
            for kind, nodes in self.cells.items()
        }


def derive(architecture: Mapping[str, Tensor] | nn.ParameterDict) -> Genotype:
    """The discrete architecture of a searched supernet (paper section 3.1).

    Of each node's incoming edges the two stay whose best operation has the largest softmax weight, with that
    operation, the stronger first.

    Args:
        architecture: kind -> architecture parameters, shape [14, 7], any float dtype.
    """
    return Genotype(
        {kind: _derive_cell(torch.softmax(alpha.detach().cpu().double(), -1)) for kind, alpha in architecture.items()}
    )


def document(
    genotype: Genotype,
    name: str,
    layout: str | None,
    origin: Mapping[str, Any],
    published: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON document of a genotype file.

    Args:
        layout: The one it was searched in, None where that is not known.
        published: How its authors build networks from it, where not as this paper's: `channels` (int, their initial
            number of filters) and `widths` (three ints, before, between and after the reductions, in multiples of it).
    """
    body = {"schema": SCHEMA, "name": name, "layout": layout, "cells": genotype.to_json()} | dict(published or {})
    return body | {"digest": digest(body), "origin": dict(origin)}


def channels(document: Mapping[str, Any]) -> int:
    """Initial number of filters that a genotype's authors use."""
    return int(document.get("channels", CHANNELS))


def widths(document: Mapping[str, Any]) -> tuple[int, int, int]:
    """Widths before, between and after the two reductions, in multiples of the initial filters."""
    first, second, third = document.get("widths", WIDTHS)
    return first, second, third


def load(name: str) -> tuple[Genotype, dict[str, Any]]:
    """Read a genotype.

    Args:
        name: Path of a genotype file, its place in a bucket (s3://...), or a published genotype's name (see
            `config.genotypes`).

    Returns:
        The genotype, and the whole document.

    Raises:
        InvalidInput: There is none of that name, or the file is malformed.
    """
    if name in genotypes():
        text = resources.files("arnas.space").joinpath("genotypes", f"{name}.json").read_text()
    elif objects.is_place(name):
        with objects.fetched(name) as copy:
            text = _read_file(copy)
    elif Path(name).is_file():
        text = _read_file(Path(name))
    else:
        known = near(name, [*genotypes(), *RIVALS])
        raise InvalidInput(f"There is no genotype {name!r}, neither as a file nor by name; near it are {known}.")
    try:
        body = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{name} is not JSON ({error}); give a file that derive wrote.") from None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise InvalidInput(f"{name} is no genotype file of schema {SCHEMA}; give a file that derive wrote.")
    found = Genotype.from_json(body.get("cells"), name)
    published = {key: body[key] for key in ("channels", "widths") if key in body}
    if body.get("digest") != document(found, body.get("name", ""), body.get("layout"), {}, published)["digest"]:
        raise InvalidInput(f"{name} was changed after it was written: its digest is another; derive it again.")
    _check_published(published, name)
    return found, body


def _check_published(published: Mapping[str, Any], place: str) -> None:
    found_channels, found_widths = published.get("channels", CHANNELS), published.get("widths", list(WIDTHS))
    if type(found_channels) is not int or found_channels < 1:
        raise InvalidInput(f"{place}: channels {found_channels!r} must be a number from 1.")
    if not isinstance(found_widths, list) or [type(width) for width in found_widths] != [int] * 3:
        raise InvalidInput(f"{place}: widths {found_widths!r} must be three numbers, such as [1, 2, 4].")
    if not all(1 <= width <= 99 for width in found_widths):
        raise InvalidInput(f"{place}: widths {found_widths!r} must be from 1 to 99.")


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}; give a genotype file.") from None


def _derive_cell(weights: Tensor) -> tuple[Node, ...]:
    names, nodes, first = list(OPERATIONS), [], 0
    for node in range(NODES):
        strengths, operations = weights[first : first + 2 + node].max(-1)
        chosen = strengths.argsort(descending=True, stable=True)[:2].tolist()
        nodes.append(tuple((names[int(operations[edge])], edge) for edge in chosen))
        first += 2 + node
    return tuple(nodes)  # type: ignore[arg-type]


def _read_cell(nodes: Any, place: str) -> tuple[Node, ...]:
    if not isinstance(nodes, list) or len(nodes) != NODES:
        raise InvalidInput(f"{place} must list {NODES} nodes.")
    for index, node in enumerate(nodes):
        if not isinstance(node, list) or len(node) != 2:
            raise InvalidInput(f"{place}, node {index} must list two [operation, input] pairs.")
        for edge in node:
            if not isinstance(edge, list) or len(edge) != 2 or edge[0] not in tuple(OPERATIONS):
                raise InvalidInput(
                    f"{place}, node {index}: {edge!r} must be [operation, input] with one of {', '.join(OPERATIONS)}."
                )
            if type(edge[1]) is not int or not 0 <= edge[1] < 2 + index:
                raise InvalidInput(f"{place}, node {index}: input {edge[1]!r} must be a number from 0 to {1 + index}.")
    return tuple(((first[0], first[1]), (second[0], second[1])) for first, second in nodes)
