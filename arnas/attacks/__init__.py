"""Attacks: each takes (model, images, labels) and returns adversarial images."""

from arnas.attacks.attack import Attack
from arnas.attacks.autoattack import AutoAttack
from arnas.attacks.fgsm import FGSM
from arnas.attacks.frozen import frozen
from arnas.attacks.pgd import PGD, cross_entropy_per_sample
from arnas.attacks.square import Square

__all__ = ["FGSM", "PGD", "Attack", "AutoAttack", "Square", "cross_entropy_per_sample", "frozen"]
