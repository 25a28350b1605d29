"""Attacks take hours; they are cut into units of work, of which a kill loses one."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from arnas.checkpoints import Keeper
from arnas.errors import InvalidInput
from arnas.runtime import Progress, precision, say_resumed

WRONG, ROBUST = -2, -1  # where the first attack that broke a sample has its index, these name none: wrong when clean


@dataclass(frozen=True)
class Shard:
    """A share of the blocks of samples: of every `count` blocks, the one at `index`, 0 <= index < count.

    A block's result does not depend on the other blocks, so neither does it on how many shards share them.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "2/4": the second of four.

        Raises:
            InvalidInput: It is no such share.
        """
        match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
        if not match or int(match[1]) > int(match[2]):
            raise InvalidInput(f"shard {text!r} is no share of the work; write for example 2/4, the second of four.")
        return cls(int(match[1]) - 1, int(match[2]))

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"

    def takes(self, block: int) -> bool:
        """Whether the block of this number is in the share."""
        return block % self.count == self.index


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Args:
        run: Writes its result into the state, after its last pass through a model: a state saved before is whole.
        passes: Images through the model, at most; with a backward pass an image counts as three.
    """

    run: Callable[[], None]
    passes: int


def in_batches(run: Callable[[int], None], samples: int, size: int, passes: int) -> list[Unit]:
    """Units that run the batches 0, 1, ... of at most `samples` samples, with `passes` each.

    How many samples an attack is left to do is known only when its turn comes; the last batches may then be empty.
    """
    starts = range(0, samples, size)
    return [Unit(partial(run, start // size), passes * min(size, samples - start)) for start in starts]


@precision("fp32")
def work(stage: str, units: Sequence[Unit], state: dict[str, Any], models: Sequence[nn.Module], keeper: Keeper) -> None:
    """Do the units that are not done yet, in order; `state["done"]` counts them.

    All is computed in true fp32. Every pass through one of `models` moves the progress bar, and is a chance to save the
    state and to stop.
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
