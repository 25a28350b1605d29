"""Attacks that see the network, on the test images in fixed blocks: FGSM, PGD-20, PGD-100, AutoAttack.

What cannot change the outcome is not done: a sample that is wrong when clean is not attacked, nor one by AutoAttack
that a part before has broken. What a block has left is packed into batches, all of them full but the last.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from arnas import runtime
from arnas.attacks import FGSM, PGD, Attack, AutoAttack
from arnas.attacks.autoattack import PARTS
from arnas.config import Whitebox
from arnas.data.image_set import ImageSet
from arnas.evaluation.models import predict
from arnas.evaluation.units import Shard, Unit, in_batches

WRONG, ROBUST = -2, -1  # values of autoattack_first that name no attack
_PART_PASSES = dict(zip(PARTS, (300, 2700, 3600, 5000), strict=True))


@dataclass(frozen=True)
class WhiteboxEvaluation:
    """The evaluation of one model as units of work upon a state.

    Args:
        model: In eval mode, on the device of the images.
        state: As `begin` made it, or as a checkpoint gave it back. `outcomes`: bool [n] by attack, still right.
            `autoattack_first`: int8 [m], index in `PARTS` of the attack that broke a sample, or ROBUST, or WRONG when
            clean. `examples`: of the first attacked samples, their places in the test split int64 [k], their PGD-20
            images [k, C, H, W] and what the model takes them for int64 [k]. `warnings`: pyautoattack's.
    """

    model: nn.Module
    images: ImageSet
    settings: Whitebox
    state: dict[str, Any]

    @staticmethod
    def begin(images: ImageSet, settings: Whitebox) -> dict[str, Any]:
        """The state when nothing is done."""
        total = min(settings.images, len(images.splits["test"]))
        return {
            "done": 0,
            "outcomes": {name: torch.zeros(total, dtype=torch.bool) for name in ("clean", "fgsm", "pgd20", "pgd100")},
            "autoattack_first": torch.full([min(total, settings.autoattack_images)], WRONG, dtype=torch.int8),
            "examples": {
                "places": torch.zeros(0, dtype=torch.int64),
                "adversarial": torch.zeros(0, *images.shape),
                "prediction": torch.zeros(0, dtype=torch.int64),
            },
            "warnings": [],
        }

    def units(self, shard: Shard) -> list[Unit]:
        """All work of a shard, block by block."""
        epsilon, step_size = self.settings.epsilon, self.settings.step_size
        total, autoattacked = len(self.state["outcomes"]["clean"]), len(self.state["autoattack_first"])
        units = []
        for number, start in enumerate(range(0, total, self.settings.block_size)):
            if not shard.takes(number):
                continue
            block, size = torch.arange(start, min(start + self.settings.block_size, total)), self.settings.batch_size
            units += in_batches(partial(self._clean, block), len(block), size, 1)
            for name, attack, passes in (
                ("fgsm", FGSM(epsilon), 4),
                ("pgd20", PGD(epsilon, step_size, 20), 61),
                ("pgd100", PGD(epsilon, step_size, 100), 301),
            ):
                units += in_batches(partial(self._attack, block, name, attack), len(block), size, passes)
            block = block[block < autoattacked]
            for part, passes in _PART_PASSES.items():
                units += in_batches(partial(self._autoattack, block, part), len(block), size, passes)
        return units

    def _clean(self, block: Tensor, number: int) -> None:
        places, images, labels = self._batch(block, number)
        right = (predict(self.model, images) == labels).cpu()
        self.state["outcomes"]["clean"][places] = right
        first = self.state["autoattack_first"]
        first[places[right & (places < len(first))]] = ROBUST

    def _attack(self, block: Tensor, name: str, attack: Attack, number: int) -> None:
        places, images, labels = self._batch(block[self.state["outcomes"]["clean"][block]], number)
        if not len(places):
            return
        runtime.seed(self.settings.seed, "whitebox", name, int(block[0]))
        with runtime.drawing(len(block), places - block[0]):  # a sample's noise is its own, whoever else is attacked
            adversarial = attack(self.model, images, labels)
        prediction = predict(self.model, adversarial)
        self.state["outcomes"][name][places] = (prediction == labels).cpu()
        if name == "pgd20":
            self._keep_examples(places, adversarial.cpu(), prediction.cpu())

    def _keep_examples(self, places: Tensor, adversarial: Tensor, prediction: Tensor) -> None:
        kept = self.state["examples"]
        more = self.settings.examples - len(kept["places"])
        for name, values in (("places", places), ("adversarial", adversarial), ("prediction", prediction)):
            kept[name] = torch.cat([kept[name], values[:more]])

    def _autoattack(self, block: Tensor, part: str, number: int) -> None:
        first = self.state["autoattack_first"]
        # what this part has broken, in a batch before, was there when it began
        standing = (first[block] == ROBUST) | (first[block] >= PARTS.index(part))
        places, images, labels = self._batch(block[standing], number)
        if not len(places):
            return
        # the same seed for every batch of a block, as in the library
        runtime.seed(self.settings.seed, "whitebox", "autoattack", int(block[0]))
        attack = AutoAttack(self.settings.epsilon, seed=torch.initial_seed())
        _, broken, warnings = attack.part(part, self.model, images, labels)
        first[places[broken.cpu()]] = PARTS.index(part)
        known = self.state["warnings"]
        known += [warning for warning in warnings if warning not in known]

    def _batch(self, places: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Those of the places that fall to a batch, and their images and labels."""
        places = places[number * self.settings.batch_size :][: self.settings.batch_size]
        return places, *self.images.batch(self.images.splits["test"].cpu()[places])
