"""What every attack is."""

from typing import Protocol

from torch import Tensor, nn


class Attack(Protocol):
    """An untargeted attack; it leaves the model as it found it."""

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Change images so that the model errs.

        Args:
            model: From pixels [N, C, H, W] in [0, 1] to logits [N, K].
            images: Floats [N, C, H, W] in [0, 1].
            labels: int64 [N], in [0, K).

        Returns:
            Adversarial images like `images`, each within epsilon of its image and in [0, 1].
        """
        ...
