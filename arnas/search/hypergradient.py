"""Hypergradients: how an objective after one virtual weight step depends on the architecture (paper section 3.2).

With w' = w - rate (momentum velocity + dL_train/dw + decay w), one virtual SGD step on the adversarial training batch,
and an objective L, the hypergradient is

    dL(w', a)/da  -  rate  d2L_train(w, a)/da dw  .  dL(w', a)/dw'

(DARTS, Liu et al. 2019, equation 7, here with momentum and weight decay in the step). The virtual step does not depend
on the objective, so all objectives share it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from arnas import runtime

Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class VirtualStep:
    """One SGD step, taken for the look and taken back; the same rate and rules as the real one."""

    learning_rate: float
    momentum: float
    weight_decay: float
    velocity: Sequence[Tensor]  # momentum buffers, one a weight; zeros before the first step


@runtime.precision("fp32")  # TF32 changes a finite difference by a fifth or more
def hypergradients(
    objectives: Sequence[Loss],
    train_loss: Loss,
    weights: Sequence[Tensor],
    architecture: Sequence[Tensor],
    step: VirtualStep,
    method: str = "finite_difference",
) -> tuple[list[Tensor], list[float]]:
    """Hypergradients of several objectives.

    Args:
        objectives: Each evaluates an upper-level loss at the weights and architecture of the moment.
        train_loss: Evaluates the lower-level loss likewise.
        weights: Parameters w; moved in place while this works, and put back.
        architecture: Parameters a.
        step: The virtual weight step.
        method: finite_difference (central differences with radius 0.01 / ||dL/dw'||, as published), exact (double
            backward), or first_order (no virtual step: dL(w, a)/da).

    Returns:
        For each objective its hypergradient, all of `architecture` as one vector; and the objectives' values.
    """
    if method == "first_order":
        direct, _, values = _at(objectives, [], architecture)
        return direct, values
    create_graph = method == "exact"
    gradient = torch.autograd.grad(train_loss(), weights, create_graph=create_graph, materialize_grads=True)
    before = [weight.detach().clone() for weight in weights]
    _take(step, weights, [g.detach() for g in gradient])
    direct, sensitivities, values = _at(objectives, weights, architecture)
    _put(weights, before)
    if create_graph:
        products = _mixed_products_exact(gradient, sensitivities, architecture)
    else:
        products = [_mixed_product(train_loss, v, weights, before, architecture) for v in sensitivities]
    return [d - step.learning_rate * p for d, p in zip(direct, products, strict=True)], values


def _at(
    objectives: Sequence[Loss], weights: Sequence[Tensor], architecture: Sequence[Tensor]
) -> tuple[list[Tensor], list[list[Tensor]], list[float]]:
    """For each objective: dL/da as a vector, dL/dw, and L."""
    direct, sensitivities, values = [], [], []
    for objective in objectives:
        loss = objective()
        gradients = torch.autograd.grad(loss, [*architecture, *weights], materialize_grads=True)
        direct.append(_vector(gradients[: len(architecture)]))
        sensitivities.append(list(gradients[len(architecture) :]))
        values.append(loss.item())
    return direct, sensitivities, values


def _mixed_products_exact(
    gradient: Sequence[Tensor], sensitivities: Sequence[Sequence[Tensor]], architecture: Sequence[Tensor]
) -> list[Tensor]:
    """d2L_train/da dw . v for each v, by differentiating dL_train/dw once more."""
    return [
        _vector(torch.autograd.grad(gradient, architecture, list(v), retain_graph=True, materialize_grads=True))
        for v in sensitivities
    ]


def _mixed_product(
    train_loss: Loss,
    v: Sequence[Tensor],
    weights: Sequence[Tensor],
    before: Sequence[Tensor],
    architecture: Sequence[Tensor],
) -> Tensor:
    """d2L_train/da dw . v by central differences of dL_train/da at w + r v and w - r v, r = 0.01 / ||v||."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in v]))
    if norm == 0:
        return torch.zeros_like(_vector(architecture))
    radius: Tensor = 0.01 / norm
    ends: list[Tensor] = []
    with _constant(weights):
        for sign in (1, -1):
            _put(weights, [w + sign * radius * g for w, g in zip(before, v, strict=True)])
            ends.append(_vector(torch.autograd.grad(train_loss(), architecture, materialize_grads=True)))
    _put(weights, before)
    return (ends[0] - ends[1]) / (2 * radius)


@contextmanager
def _constant(weights: Sequence[Tensor]) -> Iterator[None]:
    """Within, nothing is computed for gradients of the weights, which is half of the way back."""
    wanted = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight, want in zip(weights, wanted, strict=True):
            weight.requires_grad_(want)


def _take(step: VirtualStep, weights: Sequence[Tensor], gradient: Sequence[Tensor]) -> None:
    for weight, g, velocity in zip(weights, gradient, step.velocity, strict=True):
        weight.data -= step.learning_rate * (step.momentum * velocity + g + step.weight_decay * weight.data)


def _put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    # through .data, so that autograd lets `exact` go back through the graph made at these very values
    for weight, value in zip(weights, values, strict=True):
        weight.data.copy_(value)


def _vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
