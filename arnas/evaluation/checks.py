"""Checks of the evaluation itself: where they fail, gradients may be masked and the robustness not be real.

A network whose gradients are masked looks robust to attacks that follow them (Athalye et al. 2018, arXiv 1802.00420).
The checks are those of Carlini et al. 2019, arXiv 1902.06705, section 5. Counts of two attacks on the same samples are
compared by McNemar's test: a few samples more are chance, random starts being random.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypedDict

import torch
from scipy.stats import binomtest
from torch import Tensor

from arnas.attacks.autoattack import PARTS
from arnas.evaluation.curve import Point
from arnas.evaluation.statistics import mcnemar

RESTARTS = 5  # of PGD-20, beside the start that counts
LADDER = ("clean", "fgsm", "pgd20", "pgd100", "autoattack")
_STEPS = ("pgd20", "pgd100")  # of one attack, which differ in the number of steps alone
_CHANCE = 0.05  # significance level
_SQUARE_LIMIT = 0.002  # the share at which AutoAttack itself begins to doubt
# share of the samples: where gradients are not masked, nearly every start comes to the same outcome; on digits, five
# more broke 1 of 120 samples of an adversarially trained network and 3 of a naturally trained one
_RESTARTS_LIMIT = 0.02


class Check(TypedDict):
    """What was checked, whether it holds, and a sentence with the figures."""

    check: str
    holds: bool
    sentence: str


def stronger_no_weaker(outcomes: Mapping[str, Tensor]) -> list[Check]:
    """Whether each rung of `LADDER` leaves no more samples right than the one before, over those that both saw.

    Args:
        outcomes: Which samples are still right, bool [n], by attack; all begin with the same sample. Some attacks may
            be missing.
    """
    checks = []
    for weaker, stronger in pairwise(name for name in LADDER if name in outcomes):
        name = "more steps" if (weaker, stronger) == _STEPS else "ladder"
        checks.append(_no_weaker(name, weaker, stronger, outcomes[weaker], outcomes[stronger]))
    return checks


def square_breaks_no_more(first: Tensor, parts: Sequence[str]) -> list[Check]:
    """Whether Square, which needs no gradients, breaks what attacks of AutoAttack before it could not.

    Args:
        first: Index in `parts` of the attack that broke a sample first, int8 [n]; negative for none.
        parts: Those of AutoAttack's version; without Square there is no check.
    """
    if not len(first) or "square" not in parts:
        return []
    broken = int((first == parts.index("square")).sum())
    sentence = (
        f"Square broke {broken} of {len(first)} samples that withstood the gradient attacks before it in AutoAttack"
    )
    return [_check("square", not _exceeds(broken, len(first), _SQUARE_LIMIT), sentence)]


def restarts_break_little(first: Tensor) -> list[Check]:
    """Whether more random starts of PGD-20 break no more than a few of all samples.

    Args:
        first: Index of the start that broke a sample first, int8 [n]; negative for none.
    """
    if not len(first):
        return []
    broken = int((first >= 0).sum())
    sentence = f"{RESTARTS} more random starts of PGD-20 broke {broken} of {len(first)} samples"
    return [_check("restarts", not _exceeds(broken, len(first), _RESTARTS_LIMIT), sentence)]


def _exceeds(count: int, total: int, share: float) -> bool:
    """Whether a count is more than chance makes of a share: by the binomial distribution."""
    return bool(binomtest(count, total, share, alternative="greater").pvalue < _CHANCE)


def unbounded_breaks_all(curve: Sequence[Point]) -> list[Check]:
    """Whether the curve comes to zero: within the largest ball lies every image, also such of another class."""
    if not curve:
        return []
    last = curve[-1]
    sentence = f"PGD-20 leaves {last['correct']} of {last['total']} samples right at epsilon {last['epsilon']:g}"
    return [_check("unbounded epsilon", last["correct"] == 0, sentence)]


def autoattack_trusts_itself(warnings: Sequence[str], parts: Sequence[str]) -> list[Check]:
    """Whether AutoAttack's own checks (zero gradients, randomness, loops, probabilities for logits) found nothing.

    Args:
        warnings: What it warned of.
        parts: Those of AutoAttack's version; none where it was not run.
    """
    if parts and not warnings:
        return [_check("autoattack", True, "AutoAttack found nothing in the network that it could not cope with")]
    return [_check("autoattack", False, warning.rstrip("!. ")) for warning in sorted(warnings)]


def not_made(settings: Mapping[str, Any]) -> list[str]:
    """Which checks a white-box evaluation is without, and why, in a sentence each: silence is not to pass for a pass.

    Args:
        settings: As in `config.Whitebox`.
    """
    found, norm, version = [], settings["norm"], settings["autoattack_version"]
    if norm == "l1":
        found.append(
            "FGSM, PGD and the curve over epsilon are left out, because their steps are weak in the l1 norm, in which "
            "AutoAttack's are made for it; so the checks more steps, restarts and unbounded epsilon are not made."
        )
    elif not settings["curve_images"]:
        found.append("The checks restarts and unbounded epsilon are not made, because curve_images is 0.")
    if norm != "linf":
        found.append(
            f"The check black box is not made in the {norm} norm, because black-box attacks are in linf alone."
        )
    if not settings["autoattack_images"]:
        found.append("The checks square and autoattack are not made, because autoattack_images is 0.")
    elif "square" not in PARTS[version]:
        found.append(f"The check square is not made, because version {version} of AutoAttack has no Square.")
    return found


def blackbox_no_stronger(
    evaluation: Mapping[str, Any],
    outcomes: Mapping[str, Any],
    blackbox: Mapping[str, Any],
    blackbox_outcomes: Mapping[str, Any],
) -> list[Check]:
    """Whether attacks that do not see a model leave as many of its samples right as PGD, which does.

    Args:
        evaluation: Content of the model's white-box evaluation.
        outcomes: Its outcomes.safetensors: bool [n] by attack, tensors or arrays.
        blackbox: Content of a black-box evaluation.
        blackbox_outcomes: Its outcomes.safetensors: bool [n] by `transfer/SOURCE/TARGET` and `square/TARGET`.

    Returns:
        A check for every other source and for Square; none where the black-box evaluation is without the model, or of
        other images or another ball, and where there is no PGD.
    """
    name, attacked = evaluation["model"], blackbox["model_digests"].get(evaluation["model"])
    ball = evaluation["settings"]["norm"], evaluation["settings"]["epsilon"], evaluation["images"]
    if attacked != evaluation["model_digest"] or ball != ("linf", blackbox["settings"]["epsilon"], blackbox["images"]):
        return []
    seeing = next((attack for attack in reversed(_STEPS) if attack in outcomes), None)
    blind = {f"transfer from {source}": f"transfer/{source}/{name}" for source in blackbox["models"] if source != name}
    blind["square"] = f"square/{name}"
    return [
        _no_weaker(
            "black box",
            attack,
            seeing,
            torch.as_tensor(blackbox_outcomes[key]),
            torch.as_tensor(outcomes[seeing]),
        )
        for attack, key in blind.items()
        if seeing and key in blackbox_outcomes
    ]


def _no_weaker(check: str, weaker: str, stronger: str, before: Tensor, after: Tensor) -> Check:
    common = min(len(before), len(after))
    before, after = before[:common], after[:common]
    pair = mcnemar(after, before)
    sentence = (
        f"{stronger} leaves {int(after.sum())} of {common} samples right, {weaker}, which should be weaker, "
        f"{int(before.sum())}"
    )
    return _check(check, pair["difference"] <= 0 or pair["p"] >= _CHANCE, sentence)


def _check(check: str, holds: bool, sentence: str) -> Check:
    return {"check": check, "holds": holds, "sentence": f"{sentence}{'' if holds else ': gradients may be masked'}."}
