"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083), in the linf norm."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from arnas import runtime
from arnas.attacks.frozen import frozen


def cross_entropy_per_sample(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy [N] of logits [N, K] and labels int64 [N]."""
    return functional.cross_entropy(logits, labels, reduction="none")


@dataclass(frozen=True)
class PGD:
    """Signed gradient ascent on a loss, projected to the ball and to [0, 1].

    Random numbers come from torch's global generators.

    Args:
        epsilon: Radius of the linf ball, in [0, 1].
        step_size: Change of a pixel in one step, in [0, 1].
        steps: Number of steps.
        start: "uniform" in the ball, "normal" (0.001 x N(0, 1), as in adversarial training), or "none", the image.
        restarts: Number of starts; every sample keeps the one with the highest loss.
        loss: From logits [N, K] and labels [N] to losses [N]; a closure may look at more, such as the clean logits.
    """

    epsilon: float
    step_size: float
    steps: int
    start: Literal["uniform", "normal", "none"] = "uniform"
    restarts: int = 1
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy_per_sample

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        images = images.detach()
        with frozen(model):
            worst = self._ascend(model, images, labels)
            for _ in range(self.restarts - 1):
                other = self._ascend(model, images, labels)
                higher = self._losses(model, other, labels) > self._losses(model, worst, labels)
                worst = torch.where(higher[:, None, None, None], other, worst)
        return worst

    def _ascend(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        lowest, highest = (images - self.epsilon).clamp(min=0), (images + self.epsilon).clamp(max=1)
        adversarial = (images + self._noise(images)).clamp(lowest, highest)
        for _ in range(self.steps):
            adversarial.requires_grad_()
            with torch.enable_grad():
                loss = self.loss(model(adversarial), labels).sum()
            (gradient,) = torch.autograd.grad(loss, adversarial)
            adversarial = (adversarial.detach() + self.step_size * gradient.sign()).clamp(lowest, highest)
        return adversarial

    def _noise(self, images: Tensor) -> Tensor:
        if self.start == "uniform":
            return runtime.draw(lambda like: torch.empty_like(like).uniform_(-self.epsilon, self.epsilon), images)
        if self.start == "normal":
            return 0.001 * runtime.draw(torch.randn_like, images)
        return torch.zeros_like(images)

    @torch.no_grad()
    def _losses(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return self.loss(model(images), labels)
