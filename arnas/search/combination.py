"""Combining the two hypergradients, natural and adversarial, into one direction (MGDA, paper section 3.2)."""

from collections.abc import Callable

import torch
from torch import Tensor

from arnas.errors import InvalidInput

Combination = Callable[[Tensor, Tensor], Tensor]


def min_norm_weight(natural: Tensor, adversarial: Tensor) -> Tensor:
    """Weight gamma of the natural gradient in the shortest convex combination of two vectors.

    The minimiser over [0, 1] of ||gamma natural + (1 - gamma) adversarial||: the closed form of Sener and Koltun 2018
    (algorithm 1). Equal gradients, where every gamma is a minimiser, give 0.

    Args:
        natural, adversarial: Vectors of the same shape [n] and float dtype.

    Returns:
        gamma, a scalar tensor in [0, 1].
    """
    scale = torch.maximum(natural.abs().max(), adversarial.abs().max())
    natural, adversarial = natural / scale, adversarial / scale  # lest the squares of small gradients underflow
    difference = adversarial - natural
    length = difference.dot(difference)
    gamma = (difference.dot(adversarial) / length).clamp(0, 1)
    return torch.where(length > 0, gamma, torch.zeros_like(gamma))


def min_norm(natural: Tensor, adversarial: Tensor) -> Tensor:
    """The min-norm point of the segment between two gradients: a descent direction of both, or zero."""
    gamma = min_norm_weight(natural, adversarial)
    return gamma * natural + (1 - gamma) * adversarial


#: Those that are not of torchjd. One objective alone is the search that an ablation compares with.
OWN: dict[str, Combination] = {
    "min_norm": min_norm,
    "sum": torch.add,
    "natural": lambda natural, adversarial: natural,
    "adversarial": lambda natural, adversarial: adversarial,
}


def combination(name: str) -> Combination:
    """The function that combines natural and adversarial gradient, by name.

    Args:
        name: min_norm, sum, natural or adversarial (that gradient alone), or a class of `torchjd.aggregation` that
            needs no arguments, such as UPGrad or PCGrad.

    Raises:
        InvalidInput: There is none of that name.
    """
    if name in OWN:
        return OWN[name]
    from torchjd import Stateful, aggregation  # heavy, and needed by few

    known = [key for key in aggregation.__all__ if not key.endswith("Weighting") and key != "Aggregator"]
    if name not in known:
        raise InvalidInput(
            f"combination {name!r} is unknown; it is {', '.join(OWN)}, or of torchjd {', '.join(sorted(known))}."
        )
    try:
        aggregator = getattr(aggregation, name)()
        aggregator(torch.eye(2))
    except (TypeError, ValueError, ImportError) as error:
        raise InvalidInput(f"combination {name} cannot be used for two gradients ({error}); take another.") from None
    if isinstance(aggregator, Stateful):
        raise InvalidInput(
            f"combination {name} remembers earlier gradients, which a resumed search would not; take another."
        )
    return lambda natural, adversarial: aggregator(torch.stack([natural, adversarial]))
