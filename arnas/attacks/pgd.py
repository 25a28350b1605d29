"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083), in the linf and l2 norms.

In l1 such steps are weak: the steepest one changes a single pixel, and the ball reaches far out of [0, 1]. What helps
are sparse steps and a projection to ball and pixels at once (Croce and Hein 2021, arXiv 2103.01208): AutoAttack's.
"""

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
    """Steepest ascent on a loss, projected to the ball and then to [0, 1], which leads no further from the image.

    Random numbers come from torch's global generators.

    Args:
        epsilon: Radius of the ball; in linf at most 1.
        step_size: Length of a step in the norm: in linf the change of every pixel.
        steps: Number of steps.
        start: "uniform" in the ball, "normal" (0.001 x N(0, 1), as in adversarial training), or "none", the image.
        restarts: Number of starts; every sample keeps the one with the highest loss.
        norm: Of the ball; in linf a step is along the gradient's sign, in l2 along the gradient.
        loss: From logits [N, K] and labels [N] to losses [N]; a closure may look at more, such as the clean logits.
    """

    epsilon: float
    step_size: float
    steps: int
    start: Literal["uniform", "normal", "none"] = "uniform"
    restarts: int = 1
    norm: Literal["linf", "l2"] = "linf"
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
        # both balls lie within this box, and the linf ball is all of it
        lowest, highest = (images - self.epsilon).clamp(min=0), (images + self.epsilon).clamp(max=1)
        # each group of a batch starts where it would start alone
        noise = torch.cat([self._noise(group) for group in images.chunk(runtime.groups())])
        adversarial = (images + noise).clamp(lowest, highest)
        for _ in range(self.steps):
            adversarial.requires_grad_()
            with torch.enable_grad():
                loss = self.loss(model(adversarial), labels).sum()
            (gradient,) = torch.autograd.grad(loss, adversarial)
            adversarial = self._step(adversarial.detach(), gradient, images).clamp(lowest, highest)
        return adversarial

    def _step(self, adversarial: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
        if self.norm == "linf":
            return adversarial + self.step_size * gradient.sign()
        change = adversarial + self.step_size * gradient / _lengths(gradient) - images
        return images + change * (self.epsilon / _lengths(change)).clamp(max=1)

    def _noise(self, images: Tensor) -> Tensor:
        if self.start == "uniform" and self.norm == "l2":
            direction = runtime.draw(torch.randn_like, images)
            share = runtime.draw(torch.rand_like, images[:, :1, :1, :1]).pow(1 / images[0].numel())
            return direction / _lengths(direction) * share.mul(self.epsilon)
        if self.start == "uniform":
            return runtime.draw(lambda like: torch.empty_like(like).uniform_(-self.epsilon, self.epsilon), images)
        if self.start == "normal":
            return 0.001 * runtime.draw(torch.randn_like, images)
        return torch.zeros_like(images)

    @torch.no_grad()
    def _losses(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return self.loss(model(images), labels)


def _lengths(change: Tensor) -> Tensor:
    """Euclidean lengths [N, 1, 1, 1] of a change [N, C, H, W], none of them zero."""
    lengths: Tensor = torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)
    return lengths.clamp(min=1e-30)
