"""Attacks that see the network, on the test images in fixed blocks: FGSM, PGD-20, PGD-100, AutoAttack.

With them go PGD-20 at a series of epsilons and from more random starts, and corruptions, which see nothing.

What cannot change the outcome is not done: a sample that is wrong when clean is not attacked, nor one that an attack
before it in a series has broken (the parts of AutoAttack, the epsilons, the starts). What a block has left is packed
into batches, all of them full but the last.
"""

from collections.abc import Callable
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
from arnas.evaluation.checks import RESTARTS
from arnas.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from arnas.evaluation.curve import epsilons
from arnas.evaluation.models import predict
from arnas.evaluation.units import ROBUST, WRONG, Shard, Unit, in_batches

_PART_PASSES = {
    "standard": {"apgd-ce": 300, "apgd-t": 2700, "fab-t": 3600, "square": 5000},
    "plus": {"apgd-ce": 1500, "apgd-dlr": 1500, "fab": 2000, "square": 5000, "apgd-t": 2700, "fab-t": 3600},
    "rand": {"apgd-ce": 6000, "apgd-dlr": 6000},
}
_PGD20_PASSES = 61


@dataclass(frozen=True)
class WhiteboxEvaluation:
    """The evaluation of one model as units of work upon a state.

    Args:
        model: In eval mode, on the device of the images.
        state: As `begin` made it, or as a checkpoint gave it back. `outcomes`: bool [n] by attack, still right.
            `first`: int8 [m] by series (autoattack: the version's `PARTS`; curve: `epsilons`; restarts), index of the
            attack that broke a sample, or ROBUST, or WRONG when it was before the first.
            `corruptions`: bool [m, corruptions, severities], right. `examples`: of the first attacked samples, their
            places in the test split int64 [k], their PGD-20 images [k, C, H, W] and what the model takes them for
            int64 [k]. `warnings`: pyautoattack's.
    """

    model: nn.Module
    images: ImageSet
    settings: Whitebox
    state: dict[str, Any]

    @staticmethod
    def begin(images: ImageSet, settings: Whitebox) -> dict[str, Any]:
        """The state when nothing is done."""
        total = min(settings.images, len(images.splits["test"]))
        attacks = ("clean",) if settings.norm == "l1" else ("clean", "fgsm", "pgd20", "pgd100")
        curved = 0 if settings.norm == "l1" else min(total, settings.curve_images)
        series = {"autoattack": min(total, settings.autoattack_images), "curve": curved, "restarts": curved}
        corrupted = min(total, settings.corruption_images)
        return {
            "done": 0,
            "outcomes": {name: torch.zeros(total, dtype=torch.bool) for name in attacks},
            "first": {name: torch.full([count], WRONG, dtype=torch.int8) for name, count in series.items()},
            "corruptions": torch.zeros(corrupted, len(CORRUPTIONS), len(SEVERITIES), dtype=torch.bool),
            "examples": {
                "places": torch.zeros(0, dtype=torch.int64),
                "adversarial": torch.zeros(0, *images.shape),
                "prediction": torch.zeros(0, dtype=torch.int64),
            },
            "warnings": [],
        }

    def units(self, shard: Shard) -> list[Unit]:
        """All work of a shard, block by block."""
        total = len(self.state["outcomes"]["clean"])
        units = []
        for number, start in enumerate(range(0, total, self.settings.block_size)):
            if shard.takes(number):
                units += self._block(torch.arange(start, min(start + self.settings.block_size, total)))
        return units

    def _block(self, block: Tensor) -> list[Unit]:
        epsilon, norm = self.settings.epsilon, self.settings.norm
        units = self._units(partial(self._clean, block), block, 1)
        if norm != "l1":
            for name, attack, passes in (
                ("fgsm", FGSM(epsilon, norm), 4),
                ("pgd20", self._pgd(epsilon, 20), _PGD20_PASSES),
                ("pgd100", self._pgd(epsilon, 100), 301),
            ):
                units += self._units(partial(self._attack, block, name, attack), block, passes)
        version = self.settings.autoattack_version
        within = block[block < len(self.state["first"]["autoattack"])]
        for part in PARTS[version]:
            units += self._units(partial(self._autoattack, within, part), within, _PART_PASSES[version][part])
        for name, radii in (
            ("curve", epsilons(epsilon, norm, self.images.shape)),
            ("restarts", [epsilon] * RESTARTS),
        ):
            within = block[block < len(self.state["first"][name])]
            for index, radius in enumerate(radii):
                units += self._units(partial(self._series, within, name, index, radius), within, _PGD20_PASSES)
        within = block[block < len(self.state["corruptions"])]
        for name in CORRUPTIONS:
            units += self._units(partial(self._corrupt, within, name), within, len(SEVERITIES))
        return units

    def _units(self, run: Callable[[int], None], samples: Tensor, passes: int) -> list[Unit]:
        return in_batches(run, len(samples), self.settings.batch_size, passes)

    def _pgd(self, epsilon: float, steps: int) -> PGD:
        """PGD with steps in the settings' proportion to epsilon; a quarter, where none is told."""
        told, size = self.settings, self.settings.step_size
        if size is None or not told.epsilon:
            size = epsilon / 4
        elif epsilon != told.epsilon:
            size *= epsilon / told.epsilon
        return PGD(epsilon, size, steps, norm=told.norm)  # type: ignore[arg-type]  # never l1

    def _clean(self, block: Tensor, number: int) -> None:
        places, images, labels = self._batch(block, number)
        self._seed("clean", block, number)  # for a network that is random
        right = (predict(self.model, images) == labels).cpu()
        self.state["outcomes"]["clean"][places] = right
        self._enter("autoattack", places[right])
        self._enter("curve", places[right])

    def _attack(self, block: Tensor, name: str, attack: Attack, number: int) -> None:
        places, images, labels = self._batch(block[self.state["outcomes"]["clean"][block]], number)
        if not len(places):
            return
        self._seed(name, block)
        with runtime.drawing(len(block), places - block[0]):  # a sample's noise is its own, whoever else is attacked
            adversarial = attack(self.model, images, labels)
        prediction = predict(self.model, adversarial)
        right = (prediction == labels).cpu()
        self.state["outcomes"][name][places] = right
        if name == "pgd20":
            self._enter("restarts", places[right])
            self._keep_examples(places, adversarial.cpu(), prediction.cpu())

    def _keep_examples(self, places: Tensor, adversarial: Tensor, prediction: Tensor) -> None:
        kept = self.state["examples"]
        more = self.settings.examples - len(kept["places"])
        for name, values in (("places", places), ("adversarial", adversarial), ("prediction", prediction)):
            kept[name] = torch.cat([kept[name], values[:more]])

    def _enter(self, series: str, places: Tensor) -> None:
        """Samples that a series of attacks is to begin with."""
        first = self.state["first"][series]
        first[places[places < len(first)]] = ROBUST

    def _standing(self, block: Tensor, series: str, index: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of those of a block that are left when an attack of a series begins."""
        first = self.state["first"][series][block]
        # what this attack has broken, in a batch before, was there when it began
        return self._batch(block[(first == ROBUST) | (first >= index)], number)

    def _autoattack(self, block: Tensor, part: str, number: int) -> None:
        told = self.settings
        index = PARTS[told.autoattack_version].index(part)
        places, images, labels = self._standing(block, "autoattack", index, number)
        if not len(places):
            return
        self._seed("autoattack", block)  # the same for every batch of a block, as in the library
        attack = AutoAttack(told.epsilon, told.norm, told.autoattack_version, torch.initial_seed())
        _, broken, warnings = attack.part(part, self.model, images, labels)
        self.state["first"]["autoattack"][places[broken.cpu()]] = index
        known = self.state["warnings"]
        known += [warning for warning in warnings if warning not in known]

    def _series(self, block: Tensor, name: str, index: int, epsilon: float, number: int) -> None:
        places, images, labels = self._standing(block, name, index, number)
        if not len(places):
            return
        self._seed(f"{name}-{index}", block)
        with runtime.drawing(len(block), places - block[0]):
            adversarial = self._pgd(epsilon, 20)(self.model, images, labels)
        broken = (predict(self.model, adversarial) != labels).cpu()
        self.state["first"][name][places[broken]] = index

    def _corrupt(self, block: Tensor, name: str, number: int) -> None:
        places, images, labels = self._batch(block, number)
        right = []
        for severity in SEVERITIES:
            self._seed(f"{name}-{severity}", block)
            with runtime.drawing(len(block), places - block[0]):
                corrupted = corrupt(name, images, severity)
            right.append((predict(self.model, corrupted) == labels).cpu())
        self.state["corruptions"][places, list(CORRUPTIONS).index(name)] = torch.stack(right, 1)

    def _seed(self, name: str, block: Tensor, *more: int) -> None:
        runtime.seed(self.settings.seed, "whitebox", name, int(block[0]), *more)

    def _batch(self, places: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Those of the places that fall to a batch, and their images and labels."""
        places = places[number * self.settings.batch_size :][: self.settings.batch_size]
        return places, *self.images.batch(self.images.splits["test"].cpu()[places])
