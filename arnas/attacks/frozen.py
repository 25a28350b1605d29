"""A model that is looked at and not touched."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen(model: nn.Module, keep_mode: bool = False) -> Iterator[None]:
    """Freeze the parameters and switch to eval mode; on leaving, also by an exception, everything is as it was.

    Restored are the training flag of every submodule and `requires_grad` of every parameter.

    Args:
        model: Any module; its `.grad` are not used.
        keep_mode: Leave the training flags alone; the buffers, which batch norms in train mode write, are restored.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if keep_mode else []
    try:
        if not keep_mode:
            model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
