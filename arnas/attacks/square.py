"""Square: random search that sees only the logits (Andriushchenko et al. 2020, arXiv 1912.00049)."""

from dataclasses import dataclass

from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from arnas.attacks.frozen import frozen


@dataclass(frozen=True)
class Square:
    """Square of pyautoattack, in the linf norm, its schedule of square sizes stretched over the queries.

    Args:
        epsilon: Radius of the linf ball, in [0, 1].
        queries: Changes that may be tried on an image.
        seed: Of torch's global generators, which it sets.
    """

    epsilon: float
    queries: int = 5000
    seed: int = 0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        attack = SquareAttack(model, eps=self.epsilon, n_queries=self.queries, seed=self.seed, device=images.device)
        with frozen(model):
            return attack.perturb(images.detach(), labels)  # type: ignore[no-any-return]
