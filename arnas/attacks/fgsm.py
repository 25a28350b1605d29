"""The fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572, section 4)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from arnas.attacks.pgd import PGD


@dataclass(frozen=True)
class FGSM:
    """One step of `epsilon` along the sign of the cross-entropy's gradient, without a random start.

    In l2 the step is along the gradient itself (Miyato et al. 2017, arXiv 1605.07725, equation 5).
    """

    epsilon: float
    norm: Literal["linf", "l2"] = "linf"

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return PGD(self.epsilon, step_size=self.epsilon, steps=1, start="none", norm=self.norm)(model, images, labels)
