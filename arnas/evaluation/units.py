"""Attacks take hours; they are cut into units of work, of which a kill loses one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arnas.checkpoints import Keeper
from arnas.runtime import Progress, say_resumed


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Args:
        run: Writes its result into the state, after its last pass through a model: a state saved before is whole.
        passes: Images through the model, at most; with a backward pass an image counts as three.
    """

    run: Callable[[], None]
    passes: int


def work(stage: str, units: Sequence[Unit], state: dict[str, Any], models: Sequence[nn.Module], keeper: Keeper) -> None:
    """Do the units that are not done yet, in order; `state["done"]` counts them.

    Every pass through one of `models` moves the progress bar, and is a chance to save the state and to stop.
    """
    done = state["done"]
    say_resumed(stage, done, len(units), "attacks on blocks of samples")
    if done == len(units):
        return
    progress = Progress(
        stage, sum(unit.passes for unit in units), done=sum(unit.passes for unit in units[:done]), unit="pass"
    )
    left = 0

    def on_pass(model: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        nonlocal left
        passes = min(left, len(logits) * (3 if torch.is_grad_enabled() else 1))
        left -= passes
        progress.advance(count=passes)
        keeper.offer(lambda: state)

    hooks = [model.register_forward_hook(on_pass) for model in models]
    try:
        for unit in units[done:]:
            left = unit.passes
            unit.run()
            state["done"] += 1
            progress.advance(count=left)
            keeper.offer(lambda: state)
        keeper.save(state)
    finally:
        for hook in hooks:
            hook.remove()
        progress.close()
