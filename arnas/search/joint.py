"""One attack on the batches of both halves of the training set, where the device has room for it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from arnas import runtime
from arnas.attacks import PGD

#: Free memory to join two attacks, in units of what one took: its passes are twice as large, and as CUDA graphs they
#: keep about as much again (1.7 to 1.9 times as much in all on an H100, torch 2.11)
ROOM = 4


class JointAttack:
    """An attack on several batches as on one, whose batch norms do not see each other: the same but for rounding.

    Only in the fast form, and for batches of one size. On a GPU the first attacks come one by one, and tell how much
    memory one takes; where less than `ROOM` times as much is free, the others do, too.
    """

    def __init__(self, attack: PGD):
        self._attack = attack
        self._joins: bool | None = None  # not known yet

    def __call__(self, model: nn.Module, *batches: tuple[Tensor, Tensor]) -> Sequence[Tensor]:
        """The adversarial images of each batch of images [B, C, H, W] in [0, 1] and labels [B]."""
        images, labels = zip(*batches, strict=True)
        device = images[0].device
        if not runtime.fast() or device.type not in ("cpu", "cuda") or len({part.shape for part in images}) > 1:
            return self._apart(model, batches)
        if self._joins is None:
            if device.type == "cuda":
                return self._measured(model, batches, device)
            self._joins = True
        if not self._joins:
            return self._apart(model, batches)
        with runtime.grouped(len(batches)):
            return self._attack(model, torch.cat(images), torch.cat(labels)).chunk(len(batches))

    def _apart(self, model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> Sequence[Tensor]:
        return [self._attack(model, *batch) for batch in batches]

    def _measured(
        self, model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], device: torch.device
    ) -> Sequence[Tensor]:
        before, free = torch.cuda.memory_allocated(device), runtime.free_memory(device)
        torch.cuda.reset_peak_memory_stats(device)
        attacked = self._apart(model, batches)
        taken = torch.cuda.max_memory_allocated(device) - before
        self._joins = free >= ROOM * taken
        if not self._joins:
            runtime.say(
                "search",
                f"the two attacks of a step are not joined, since {free / 2**30:.1f} GiB of the GPU are free and one "
                f"takes {taken / 2**30:.1f}.",
            )
        return attacked
