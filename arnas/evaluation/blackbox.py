"""Attacks that do not see the network, on the test images in fixed blocks.

What cannot change the outcome is not done: a sample that no model gets right is not attacked, and an example is tried
on those that do. What a block has left is packed into batches, all of them full but the last.

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
from arnas.evaluation.units import Unit, in_batches


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
            for run, part, passes in (
                (self._clean, block, 1),
                (self._transfer, block, pgd_passes),
                (self._square, block[block < squared], self.settings.square_queries),
            ):
                for name in self.models:
                    units += in_batches(partial(run, part, name), len(part), self.settings.batch_size, passes)
        return units

    def _clean(self, block: Tensor, name: str, number: int) -> None:
        places, images, labels = self._batch(block, number)
        self.state["clean"][name][places] = self._right(name, images, labels)

    def _transfer(self, block: Tensor, source: str, number: int) -> None:
        clean, settings = self.state["clean"], self.settings
        matters = torch.stack([right[block] for right in clean.values()]).any(0)
        places, images, labels = self._batch(block[matters], number)
        if not len(places):
            return
        runtime.seed(settings.seed, "blackbox", "pgd", int(block[0]))
        attack = PGD(settings.epsilon, settings.step_size, settings.attack_steps)
        with runtime.drawing(len(block), places - block[0]):  # a sample's noise is its own, whoever else is attacked
            adversarial = attack(self.models[source], images, labels)
        found = {}
        for target in self.models:
            tried = clean[target][places]
            if tried.any():
                found[target] = places[tried], self._right(target, adversarial[tried], labels[tried])
        for target, (tried, right) in found.items():
            self.state["transfer"][source][target][tried] = right

    def _square(self, block: Tensor, name: str, number: int) -> None:
        places, images, labels = self._batch(block[self.state["clean"][name][block]], number)
        if not len(places):
            return
        runtime.seed(self.settings.seed, "blackbox", "square", int(block[0]), number)
        attack = Square(self.settings.epsilon, self.settings.square_queries, seed=torch.initial_seed())
        adversarial = attack(self.models[name], images, labels)
        self.state["square"][name][places] = self._right(name, adversarial, labels)

    def _right(self, name: str, images: Tensor, labels: Tensor) -> Tensor:
        return (predict(self.models[name], images) == labels).cpu()

    def _batch(self, places: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Those of the places that fall to a batch, and their images and labels."""
        places = places[number * self.settings.batch_size :][: self.settings.batch_size]
        return places, *self.images.batch(self.images.splits["test"].cpu()[places])
