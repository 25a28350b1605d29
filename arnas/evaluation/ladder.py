"""Stronger attacks must leave fewer samples right; where they do not, the evaluation itself is in doubt.

A network whose gradients are masked looks robust to attacks that follow them (Athalye et al. 2018, arXiv 1802.00420).
"""

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor

from arnas.attacks.autoattack import PARTS

LADDER = ("clean", "fgsm", "pgd20", "pgd100", "autoattack")
_SQUARE_LIMIT = 0.002  # the share at which AutoAttack itself begins to doubt


def violations(outcomes: Mapping[str, Tensor]) -> list[str]:
    """A sentence for each rung of `LADDER` that does better than the rung before, over the samples that both saw.

    Args:
        outcomes: Which samples are still right, bool [n], by attack; all begin with the same sample. AutoAttack may be
            missing.
    """
    sentences = []
    for weaker, stronger in pairwise(name for name in LADDER if name in outcomes):
        common = min(len(outcomes[weaker]), len(outcomes[stronger]))
        before, after = (int(outcomes[name][:common].sum()) for name in (weaker, stronger))
        if after > before:
            sentences.append(
                f"{stronger} leaves {after} of {common} samples right, but the weaker {weaker} only {before}: "
                "a few are chance, many mean that gradients are masked."
            )
    return sentences


def square_doubts(first: Tensor) -> list[str]:
    """A sentence if Square, which needs no gradients, broke what AutoAttack's other attacks could not.

    Args:
        first: Index in AutoAttack's `PARTS` of the attack that broke a sample first, int8 [n]; negative for none.
    """
    broken = int((first == PARTS.index("square")).sum())
    if broken <= _SQUARE_LIMIT * len(first):
        return []
    return [
        f"Square broke {broken} of {len(first)} samples that withstood the gradient attacks of AutoAttack: "
        "gradients may be masked."
    ]
