"""Sizes of networks: parameters and multiply-accumulates, counted on the meta device without computing anything."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from arnas import config
from arnas.errors import InvalidInput
from arnas.space.layout import Layout, choose_stem_stride
from arnas.space.network import build, describe
from arnas.space.supernet import Supernet


def count(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Parameters, and multiply-accumulates of convolutions and linear layers for one image of `shape` (C, H, W).

    The auxiliary head, which evaluation does not run, and architecture parameters are left out.
    """
    network = network.to("meta").eval()
    left_out = ("auxiliary.", "architecture.")
    parameters = sum(p.numel() for name, p in network.named_parameters() if not name.startswith(left_out))
    # two images, since batch statistics of one pixel do not exist
    return {"parameters": parameters, "macs": macs(network, torch.empty(2, *shape, device="meta"))}


def macs(network: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image, counted on all of these [N, C, H, W]."""
    logging.getLogger("torch.utils.flop_counter").setLevel(logging.ERROR)  # it warns of an absent triton
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as flops, torch.no_grad():
        network(images)
    return int(flops.get_total_flops() // (2 * len(images)))


def info(
    name: str | None,
    *,
    supernet: bool = False,
    channels: int | None = None,
    layers: int | None = None,
    layout: str | None = None,
    stem_stride: int | None = None,
    classes: int = 10,
    image_size: int = 32,
) -> dict[str, Any]:
    """Describe a network: its layout, parameters and multiply-accumulates (auxiliary head left out).

    Args:
        name: Genotype file, or name of a published genotype or hand-made network; ignored for the supernet.
        channels, layers, layout: Those of the paper by default; see `config.Search` and `config.Retrain`.
        stem_stride: See `layout.choose_stem_stride`.

    Raises:
        InvalidInput: The genotype or layout is unknown or malformed, or the images are too small.
    """
    if image_size < 8:
        raise InvalidInput(f"image size {image_size} is too small; two reductions need 8 pixels a side or more.")
    shape = (3, image_size, image_size)
    with torch.device("meta"):
        if supernet:
            default = config.Search()
            placed = Layout.parse(layout) if layout else Layout.paper(layers or default.layers)
            sizes = {"channels": channels or default.channels, "classes": classes}
            sizes["stem_stride"] = choose_stem_stride(stem_stride, shape)
            network: nn.Module = Supernet(placed, **sizes)
            described: dict[str, Any] = {"network": "supernet", "layout": str(placed)} | sizes
        elif name is None:
            raise InvalidInput(
                f"Name a genotype (a file, or one of {', '.join(config.genotypes())}), a hand-made network "
                f"({', '.join(config.RIVALS)}), or --supernet."
            )
        else:
            described = describe(
                name,
                shape,
                classes,
                channels=channels,
                layers=layers or config.Retrain().layers,
                layout=layout,
                stem_stride=stem_stride,
            )
            network = build(described)
    kept = {key: described[key] for key in ("channels", "classes", "stem_stride", "layout") if key in described}
    return {"network": "supernet" if supernet else name, "image_size": image_size} | kept | count(network, shape)
