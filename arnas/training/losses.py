"""Losses of adversarial training: each attacks a batch and returns the loss to descend.

All take (network, attacked, images, labels, recipe): images [B, C, H, W] in [0, 1], labels int64 [B]. The attack sees
the network in evaluation mode, as `attacked()` gives it; the loss is computed in training mode. The auxiliary head
learns from the images of the cross-entropy term.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from arnas.attacks import PGD, frozen
from arnas.config import Retrain
from arnas.space.classifier import Classifier
from arnas.space.folding import attackable

#: (loss to descend, logits [B, K] of the images trained on)
Outcome = tuple[Tensor, Tensor]
#: Gives the network as it is now, or its equal, to an attack
Attacked = Callable[[], nn.Module]


def natural(network: Classifier, attacked: Attacked, images: Tensor, labels: Tensor, recipe: Retrain) -> Outcome:
    """Cross-entropy of the clean images: no defence, for comparison."""
    logits, auxiliary = _classify(network, images, labels, recipe)
    return functional.cross_entropy(logits, labels) + auxiliary, logits


def pgd_at(network: Classifier, attacked: Attacked, images: Tensor, labels: Tensor, recipe: Retrain) -> Outcome:
    """PGD adversarial training (Madry et al. 2018, equation 2.1)."""
    attack = PGD(recipe.epsilon, recipe.step_size, recipe.attack_steps, start="normal")
    return natural(network, attacked, attack(attacked(), images, labels), labels, recipe)


def trades(network: Classifier, attacked: Attacked, images: Tensor, labels: Tensor, recipe: Retrain) -> Outcome:
    """TRADES (Zhang et al. 2019, equation 5): clean cross-entropy + beta KL(clean || adversarial).

    The attack ascends that divergence, from near the image.
    """
    model = attacked()
    with frozen(model), torch.no_grad():
        reference = model(images)
    attack = PGD(
        recipe.epsilon,
        recipe.step_size,
        recipe.attack_steps,
        start="normal",
        loss=lambda logits, _: divergence(reference, logits),
    )
    adversarial = attack(model, images, labels)
    logits, auxiliary = _classify(network, images, labels, recipe)
    adversarial_logits = network(adversarial)
    robust = divergence(logits, adversarial_logits).mean()
    return functional.cross_entropy(logits, labels) + recipe.beta * robust + auxiliary, adversarial_logits


def mart(network: Classifier, attacked: Attacked, images: Tensor, labels: Tensor, recipe: Retrain) -> Outcome:
    """MART (Wang et al. 2020, equation 12): boosted cross-entropy + beta KL weighted by 1 - clean confidence."""
    attack = PGD(recipe.epsilon, recipe.step_size, recipe.attack_steps, start="normal")
    adversarial = attack(attacked(), images, labels)
    adversarial_logits, auxiliary = _classify(network, adversarial, labels, recipe)
    clean = network(images)
    probabilities = adversarial_logits.softmax(-1)
    right = functional.one_hot(labels, probabilities.shape[1]).bool()
    rival = probabilities.masked_fill(right, 0).amax(-1)
    boosted = functional.cross_entropy(adversarial_logits, labels) - (1 - rival).clamp(min=1e-12).log().mean()
    doubt = 1 - clean.softmax(-1)[right]
    robust = (divergence(clean, adversarial_logits) * doubt).mean()
    return boosted + recipe.beta * robust + auxiliary, adversarial_logits


LOSSES: dict[str, Callable[[Classifier, Attacked, Tensor, Tensor, Retrain], Outcome]] = {
    "natural": natural,
    "pgd_at": pgd_at,
    "trades": trades,
    "mart": mart,
}


class Objective(nn.Module):
    """The loss of a recipe as a module around the network, as DistributedDataParallel wants it."""

    def __init__(self, network: Classifier, recipe: Retrain):
        super().__init__()
        self.network, self.recipe = network, recipe
        self.attacked = attackable(network)  # no submodule: what it copies is neither trained nor saved

    def forward(self, images: Tensor, labels: Tensor) -> Outcome:
        return LOSSES[self.recipe.loss](self.network, self.attacked, images, labels, self.recipe)


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(logits)), shape [B], of two logits [B, K].

    Of log-probabilities, since the gradient of a probability that underflows to 0 is not a number.
    """
    return functional.kl_div(logits.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )


def _classify(network: Classifier, images: Tensor, labels: Tensor, recipe: Retrain) -> tuple[Tensor, Tensor]:
    """Logits, and the auxiliary head's weighted cross-entropy, in training mode."""
    network.train()
    logits, auxiliary = network.with_auxiliary(images)
    if auxiliary is None:
        return logits, torch.zeros((), device=logits.device, dtype=logits.dtype)
    return logits, recipe.auxiliary_weight * functional.cross_entropy(auxiliary, labels)
