"""AutoAttack, the standard version (Croce and Hein 2020, arXiv 2003.01690), computed by pyautoattack."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyautoattack
import torch
from torch import Tensor, nn

from arnas.attacks.frozen import frozen
from arnas.errors import InvalidInput

PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclass(frozen=True)
class AutoAttack:
    """Four attacks, each on the samples that those before could not break.

    The whole is one call; `part` runs one of the four, so that its outcome can be stored. Either way the result is that
    of `run_standard_evaluation` on the same samples as one batch. Noise depends on a sample's place among its fellows:
    the same block of samples gives the same result.

    Args:
        epsilon: Radius of the linf ball, in [0, 1].
        seed: Of torch's global generators, which every part sets.
    """

    epsilon: float
    seed: int = 0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        adversarial = images.clone()
        with torch.no_grad(), frozen(model):
            standing = (model(images).argmax(1) == labels).nonzero()[:, 0]
        for name in PARTS:
            if len(standing):
                found, broken, _ = self.part(name, model, images[standing], labels[standing])
                adversarial[standing[broken]] = found[broken]
                standing = standing[~broken]
        return adversarial

    def part(self, name: str, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[str]]:
        """Run one of `PARTS` on the samples that are still classified right, at least one.

        Returns:
            Adversarial images (a sample that withstood is unchanged), which samples broke (bool [N]), and the warnings
            of pyautoattack.
        """
        with frozen(model), _warnings() as warnings:
            with torch.no_grad():
                targets = target_classes(model(images[:1]).shape[1])
            attack = pyautoattack.AutoAttack(model, eps=self.epsilon, seed=self.seed, device=images.device)
            attack.attacks_to_run = [name]
            attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
            adversarial, predicted = attack.run_standard_evaluation(images, labels, batch_size=len(images))
        return adversarial, predicted != labels, warnings


def target_classes(classes: int) -> int:
    """How many classes the targeted attacks aim at: nine, or all wrong ones.

    Raises:
        InvalidInput: Fewer than four classes, of which the targeted DLR loss needs the logits.
    """
    if classes < 4:
        raise InvalidInput(
            f"AutoAttack needs four classes or more, but the model has {classes}; leave it out (autoattack_images: 0)."
        )
    return min(9, classes - 1)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what pyautoattack would log, each kind of warning once."""
    found: dict[str, None] = {}
    handler = logging.Handler(logging.WARNING)
    # "See flags_doc.md for details" and the number of points would only make many messages of one
    handler.emit = lambda record: found.setdefault(  # type: ignore[method-assign]
        re.sub(r" See \S+ for details\.|(?<=there are )\d+ ", "", record.getMessage())
    )
    logger = logging.getLogger("auto-attack")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    messages: list[str] = []  # filled on leaving
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        messages.extend(f"AutoAttack: {message}" for message in found)
