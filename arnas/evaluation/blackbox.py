"""Attacks that do not see the network, on the test images in fixed blocks.

Examples made on one model are tried on all (Papernot et al. 2016, arXiv 1605.07277); Square asks only for logits.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from arnas import runtime
from arnas.attacks import PGD, Square
from arnas.config import Blackbox
from arnas.data.image_set import ImageSet
from arnas.evaluation.models import predict
from arnas.evaluation.units import Unit


@dataclass(frozen=True)
class BlackboxEvaluation:
    """The evaluation of several models, by their names, as units of work upon a state.

    Args:
        models: In eval mode, on the device of the images.
        state: As `begin` made it, or as a checkpoint gave it back. `clean`: bool [n] by model, right without an attack.
            `transfer`: bool [n] by source and target, right without and with it. `square`: bool [m] by model, likewise.
    """

    models: dict[str, nn.Module]
    images: ImageSet
    settings: Blackbox
    state: dict[str, Any]

    @staticmethod
    def begin(names: list[str], images: ImageSet, settings: Blackbox) -> dict[str, Any]:
        """The state when nothing is done."""
        total = min(settings.images, len(images.splits["test"]))
        squared = min(total, settings.square_images)
        return {
            "done": 0,
            "clean": {name: torch.zeros(total, dtype=torch.bool) for name in names},
            "transfer": {name: {other: torch.zeros(total, dtype=torch.bool) for other in names} for name in names},
            "square": {name: torch.zeros(squared, dtype=torch.bool) for name in names},
        }

    def units(self) -> list[Unit]:
        """All work, block by block."""
        total, squared = (len(next(iter(self.state[key].values()))) for key in ("clean", "square"))
        pgd_passes = 3 * self.settings.attack_steps + 1 + len(self.models)
        units = []
        for start in range(0, total, self.settings.block_size):
            block = torch.arange(start, min(start + self.settings.block_size, total))
            units += [Unit(partial(self._clean, block, name), len(block)) for name in self.models]
            units += [Unit(partial(self._transfer, block, name), pgd_passes * len(block)) for name in self.models]
            block = block[block < squared]
            if len(block):
                passes = self.settings.square_queries * len(block)
                units += [Unit(partial(self._square, block, name), passes) for name in self.models]
        return units

    def _clean(self, block: Tensor, name: str) -> None:
        self.state["clean"][name][block] = self._right(name, *self._batch(block))

    def _transfer(self, block: Tensor, source: str) -> None:
        images, labels = self._batch(block)
        settings = self.settings
        runtime.seed(settings.seed, "blackbox", "pgd", int(block[0]))
        attack = PGD(settings.epsilon, settings.step_size, settings.attack_steps)
        adversarial = attack(self.models[source], images, labels)
        right = {target: self._right(target, adversarial, labels) for target in self.models}
        for target in self.models:
            self.state["transfer"][source][target][block] = self.state["clean"][target][block] & right[target]

    def _square(self, block: Tensor, name: str) -> None:
        places = block[self.state["clean"][name][block]]
        if not len(places):
            return
        images, labels = self._batch(places)
        runtime.seed(self.settings.seed, "blackbox", "square", int(block[0]))
        attack = Square(self.settings.epsilon, self.settings.square_queries, seed=torch.initial_seed())
        adversarial = attack(self.models[name], images, labels)
        self.state["square"][name][places] = self._right(name, adversarial, labels)

    def _right(self, name: str, images: Tensor, labels: Tensor) -> Tensor:
        return (predict(self.models[name], images) == labels).cpu()

    def _batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        return self.images.batch(self.images.splits["test"].cpu()[places])
