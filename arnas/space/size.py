"""Sizes of networks: parameters and multiply-accumulates, counted on the meta device without computing anything."""

import logging
from typing import Any

import torch
from torch import nn

from arnas import config
from arnas.errors import InvalidInput
from arnas.space import genotype as genotypes
from arnas.space.layout import Layout
from arnas.space.network import build
from arnas.space.supernet import Supernet


def count(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Parameters, and multiply-accumulates of convolutions and linear layers for one image of `shape` (C, H, W).

    The auxiliary head, which evaluation does not run, and architecture parameters are left out.
    """
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # it warns of an absent triton
    from torch.utils.flop_counter import FlopCounterMode

    network = network.to("meta").eval()
    left_out = ("auxiliary.", "architecture.")
    parameters = sum(p.numel() for name, p in network.named_parameters() if not name.startswith(left_out))
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        # two images, since batch statistics of one pixel do not exist
        network(torch.empty(2, *shape, device="meta"))
    return {"parameters": parameters, "macs": flops.get_total_flops() // 4}


def info(
    name: str | None,
    *,
    supernet: bool = False,
    channels: int,
    layers: int,
    layout: str | None = None,
    classes: int = 10,
    image_size: int = 32,
) -> dict[str, Any]:
    """Describe a network: its layout, parameters and multiply-accumulates (auxiliary head left out).

    Args:
        name: Genotype file, published genotype, or "resnet18"; ignored for the supernet.

    Raises:
        InvalidInput: The genotype or layout is unknown or malformed, or the images are too small.
    """
    if image_size < 8:
        raise InvalidInput(f"image size {image_size} is too small; two reductions need 8 pixels a side or more.")
    placed = Layout.parse(layout) if layout else Layout.paper(layers)
    sizes = {"channels": channels, "classes": classes}
    with torch.device("meta"):
        if supernet:
            network: nn.Module = Supernet(placed, **sizes)
        elif name == "resnet18":
            network = build({"architecture": "resnet18", "channels_in": 3} | sizes)
        elif name is None:
            raise InvalidInput(
                "Name a genotype (a file, or one of " + ", ".join(config.genotypes()) + "), resnet18, or --supernet."
            )
        else:
            genotype, _ = genotypes.load(name)
            network = build(
                {"architecture": "genotype", "cells": genotype.to_json(), "layout": str(placed), "channels_in": 3}
                | {"auxiliary": False, "drop_path": 0.0}
                | sizes
            )
    body: dict[str, Any] = {"network": "supernet" if supernet else name, "image_size": image_size} | sizes
    if name != "resnet18" or supernet:
        body["layout"] = str(placed)
    return body | count(network, (3, image_size, image_size))
