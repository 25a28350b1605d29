"""What every network that is trained and evaluated has in common."""

from torch import Tensor, nn


class Classifier(nn.Module):
    """Images [N, channels_in, H, W] in [0, 1] to logits [N, classes]."""

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the network and, in training, of its auxiliary head if it has one."""
        return self(images), None
