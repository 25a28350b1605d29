"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690; in the l1 norm 2021, arXiv 2103.01208), by pyautoattack."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import pyautoattack
import torch
from torch import Tensor, nn

from arnas.attacks.frozen import frozen
from arnas.errors import InvalidInput

#: The attacks of each version, in their order
PARTS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class AutoAttack:
    """Several attacks, each on the samples that those before could not break.

    The whole is one call; `part` runs one of them, so that its outcome can be stored. Either way the result is that of
    `run_standard_evaluation` on the same samples as one batch. Noise depends on a sample's place among its fellows: the
    same block of samples gives the same result. (A model that is random itself draws from the same generators; what it
    gets wrong of itself while a part looks at it counts as broken.)

    Args:
        epsilon: Radius of the ball; in linf at most 1, in l2 and l1 any, such as 0.5 and 12.
        norm: Of the ball.
        version: "standard"; "plus", also with the untargeted attacks and more restarts; or "rand", for models that are
            random, whose gradients it averages over 20 passes.
        seed: Of torch's global generators, which every part sets.
    """

    epsilon: float
    norm: Literal["linf", "l2", "l1"] = "linf"
    version: Literal["standard", "plus", "rand"] = "standard"
    seed: int = 0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        adversarial = images.clone()
        with torch.no_grad(), frozen(model):
            standing = (model(images).argmax(1) == labels).nonzero()[:, 0]
        for name in PARTS[self.version]:
            if len(standing):
                found, broken, _ = self.part(name, model, images[standing], labels[standing])
                adversarial[standing[broken]] = found[broken]
                standing = standing[~broken]
        return adversarial

    def part(self, name: str, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[str]]:
        """Run one of the version's `PARTS` on the samples that are still classified right, at least one.

        Returns:
            Adversarial images (a sample that withstood is unchanged), which samples broke (bool [N]), and the warnings
            of pyautoattack.
        """
        with frozen(model), _warnings() as warnings:
            with torch.no_grad():
                classes = model(images[:1]).shape[1]
            require_classes(classes)
            attack = pyautoattack.AutoAttack(
                model,
                eps=self.epsilon,
                norm=_NORMS[self.norm],
                version=self.version,
                seed=self.seed,
                device=images.device,
            )
            attack.attacks_to_run = [name]
            for targeted in (attack.apgd_targeted, attack.fab):  # all wrong classes, where there are not as many
                targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
            adversarial, predicted = attack.run_standard_evaluation(images, labels, batch_size=len(images))
        return adversarial, predicted != labels, warnings


def require_classes(classes: int) -> None:
    """Refuse a number of classes that AutoAttack cannot do.

    Raises:
        InvalidInput: Fewer than four classes, of which the targeted DLR loss needs the logits.
    """
    if classes < 4:
        raise InvalidInput(
            f"AutoAttack needs four classes or more, but the model has {classes}; leave it out (autoattack_images: 0)."
        )


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
