"""The fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572, section 4)."""

from dataclasses import dataclass

from torch import Tensor, nn

from arnas.attacks.pgd import PGD


@dataclass(frozen=True)
class FGSM:
    """One step of `epsilon` (in [0, 1]) along the sign of the cross-entropy's gradient, without a random start."""

    epsilon: float

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return PGD(self.epsilon, step_size=self.epsilon, steps=1, start="none")(model, images, labels)
