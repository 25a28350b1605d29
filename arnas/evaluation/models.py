"""Trained models as the evaluations use them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arnas import runtime
from arnas.data.image_set import ImageSet
from arnas.errors import InvalidInput
from arnas.space.folding import attackable
from arnas.space.foreign import Foreign
from arnas.space.network import load_model


def load_fitting(path: str | Path, images: ImageSet) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model, as attacks shall see it, and its artifact's body, on the device of the images to classify.

    Raises:
        InvalidInput: `path` is no model, or the model is made for images or classes of other number or size.
    """
    model, body = load_model(path, images.device)
    require_fit(body, path, images)
    if not isinstance(model, Foreign):
        model = runtime.place(model, images.device)
    return attackable(model)(), body


def require_fit(body: dict[str, Any], path: str | Path, images: ImageSet) -> None:
    """Refuse a model, by its artifact's body, that is made for other images or classes than those of a set.

    Raises:
        InvalidInput: They differ in number or size.
    """
    shape, classes = tuple(body["content"]["data"]["shape"]), len(body["content"]["data"]["classes"])
    if (shape, classes) != (images.shape, len(images.classes)):
        raise InvalidInput(
            f"Model {path} expects images of shape {shape} in {classes} classes, but the image set has shape "
            f"{images.shape} and {len(images.classes)} classes; give images like those of its training."
        )


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Classes int64 [N] of images [N, C, H, W]."""
    return model(images).argmax(1)  # type: ignore[no-any-return]
