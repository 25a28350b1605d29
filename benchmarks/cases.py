"""What is measured: four steps, each in its published form and in ours, and the sizes that suit a kind of device."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import pyautoattack
import torch
from torch import Tensor, nn

from arnas import runtime
from arnas.attacks import PGD
from arnas.config import Adversary, Retrain, Search
from arnas.search.loop import SearchStep
from arnas.space import genotype
from arnas.space.classifier import Classifier
from arnas.space.folding import attackable
from arnas.space.layout import Layout
from arnas.space.network import build
from arnas.space.supernet import Supernet
from arnas.training.losses import Objective
from benchmarks import published

CLASSES = 10
#: The attack of an evaluation, for a few iterations: its time is theirs
EVALUATION = Adversary(attack_steps=5)
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A step at a size: C = `channels`, L = `layers` cells, `batch` images of 3 x `pixels` x `pixels`.

    `share` is its part, in (0, 1], of the time that there is on the device; it takes `pairs` pairs at least. The forms
    named in `tf32` may use it in their convolutions, where the device has it.
    """

    kind: str  # of `KINDS`
    channels: int
    layers: int
    batch: int
    pixels: int = 32
    share: float = 1.0
    pairs: int = 3
    tf32: tuple[str, ...] = ()

    def __str__(self) -> str:
        precision = f", TF32 in {' and '.join(self.tf32)}" if self.tf32 else ""
        return f"{KINDS[self.kind].title}, C={self.channels} L={self.layers}, batch {self.batch}{precision}"


@dataclass(frozen=True)
class Form:
    """A step in one form.

    Args:
        step: Takes two batches; only the search looks at the second.
        outcome: What the steps so far have led to, in an order that both forms share.
        networks: All that the step passes through; the `head` of one of them ends every pass of the published form.
    """

    step: Callable[[Batch, Batch], object]
    outcome: Callable[[], list[Tensor]]
    networks: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Kind:
    """A step, and what makes it in the published form and in ours from (case, device, dtype)."""

    title: str
    published: Callable[[Case, torch.device, torch.dtype], Form]
    ours: Callable[[Case, torch.device, torch.dtype], Form]


#: As decorator or context: steps compute in the plain form
plainly = mock.patch.dict(os.environ, ARNAS_FORM="plain")


@contextmanager
def allowing_tf32() -> Iterator[None]:
    """Within, convolutions may use TF32, as torch lets them when nobody says otherwise."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def published_search(case: Case, device: torch.device, dtype: torch.dtype) -> Form:
    step = published.SearchStep(_supernet(case, dtype).to(device), Search())
    return _of(plainly(step.__call__), step.supernet, step.virtual)


def our_search(case: Case, device: torch.device, dtype: torch.dtype) -> Form:
    step = SearchStep(runtime.place(_supernet(case, dtype), device), Search())
    return _of(step, step.supernet)


def published_retraining(case: Case, device: torch.device, dtype: torch.dtype) -> Form:
    step = published.RetrainStep(_network(case, dtype).to(device), Retrain())
    return _of(plainly(lambda batch, _: step(*batch)), step.network)


def our_retraining(case: Case, device: torch.device, dtype: torch.dtype) -> Form:
    """The step of `arnas.training.loop.train`, without its data, checkpoints and progress."""
    recipe = Retrain()
    network = runtime.place(_network(case, dtype), device)
    objective = Objective(network, recipe)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
    )

    def step(batch: Batch, _: Batch) -> None:
        loss, _logits = objective(*batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip)
        optimizer.step()

    return _of(step, network)


def published_attack(case: Case, device: torch.device, dtype: torch.dtype) -> Form:
    network = _network(case, dtype).to(device).eval()

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        network.zero_grad()
        return published.pgd(network, images, labels, published.uniform(images, EVALUATION), EVALUATION)

    return _of_attack(plainly(attack), network)


def our_attack(case: Case, device: torch.device, dtype: torch.dtype) -> Form:
    network = _attacked(case, device, dtype)
    attack = PGD(EVALUATION.epsilon, EVALUATION.step_size, EVALUATION.attack_steps)
    return _of_attack(functools.partial(attack, network), network)


def published_autoattack(case: Case, device: torch.device, dtype: torch.dtype) -> Form:
    network = _network(case, dtype).to(device).eval()
    return _of_attack(plainly(functools.partial(_apgd, network, dtype)), network)


def our_autoattack(case: Case, device: torch.device, dtype: torch.dtype) -> Form:
    network = _attacked(case, device, dtype)
    return _of_attack(functools.partial(_apgd, network, dtype), network)


KINDS = {
    "search": Kind("search step", published_search, our_search),
    "retrain": Kind("retraining step", published_retraining, our_retraining),
    "attack": Kind(f"{EVALUATION.attack_steps} PGD iterations", published_attack, our_attack),
    "autoattack": Kind(
        f"{EVALUATION.attack_steps} iterations of AutoAttack's APGD", published_autoattack, our_autoattack
    ),
}
CASES = {
    "cpu": (  # what takes longest comes last, where a slow machine runs out of time
        Case("retrain", 16, 8, 32, share=0.1),
        Case("attack", 16, 8, 50, share=0.05),
        Case("autoattack", 16, 8, 50, share=0.05),
        Case("search", 8, 5, 32, share=0.35, pairs=2),
        Case("search", 24, 8, 8, share=0.45, pairs=1),
    ),
    "cuda": (
        Case("search", 24, 8, 32, share=0.4, pairs=2),
        Case("retrain", 64, 20, 32, share=0.1, tf32=("published", "ours")),
        Case("retrain", 64, 20, 128, share=0.15, tf32=("published", "ours")),
        Case("attack", 64, 20, 500, share=0.1, tf32=("ours",)),  # as in training
        Case("attack", 64, 20, 500, share=0.1),
        Case("autoattack", 64, 20, 500, share=0.15),
    ),
}
#: One of each kind, a moment on any machine; both forms are shown to be equal at this size
SMALL = tuple(Case(kind, channels=2, layers=3, batch=4, pixels=8, pairs=1) for kind in KINDS)


def batches(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[Batch, Batch]:
    """Two batches of random images and labels, the same for every form."""
    torch.manual_seed(0)
    images = torch.rand(2, case.batch, 3, case.pixels, case.pixels).to(device, dtype)
    labels = torch.randint(CLASSES, (2, case.batch)).to(device)
    return (images[0], labels[0]), (images[1], labels[1])


def begin(name: str, case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> Form:
    """A case in one of its forms, published or ours."""
    form: Form = getattr(KINDS[case.kind], name)(case, device, dtype)
    return replace(form, step=allowing_tf32()(form.step)) if name in case.tf32 else form


@functools.cache
def compare(kind: Kind, device: torch.device) -> tuple[float, dict[str, int]]:
    """Both forms, at a small size in float64, after two steps from the same random numbers.

    Returns:
        The largest difference of what they lead to, and how many passes forward and backward a published step takes.
    """
    case = next(case for case in SMALL if KINDS[case.kind] == kind)
    first, second = batches(case, device, torch.float64)
    forms = [make(case, device, torch.float64) for make in (kind.published, kind.ours)]
    passes = {"forward": 0, "backward": 0}

    def count(direction: str) -> None:
        passes[direction] += 1

    def watch(_head: nn.Module, _inputs: object, logits: Tensor) -> None:
        count("forward")
        if logits.requires_grad:
            logits.register_hook(lambda _gradient: count("backward"))

    watched = [network.head.register_forward_hook(watch) for network in forms[0].networks]
    for number in range(2):
        for form in forms:
            torch.manual_seed(number)
            form.step(first, second)
        for hook in watched:
            hook.remove()  # one step is counted
    outcomes = [form.outcome() for form in forms]
    return max((a - b).abs().max().item() for a, b in zip(*outcomes, strict=True)), passes


def _of(step: Callable[[Batch, Batch], object], *networks: nn.Module) -> Form:
    """A step that changes the first of its networks."""
    return Form(step, lambda: list(networks[0].state_dict().values()), networks)


def _of_attack(attack: Callable[[Tensor, Tensor], Tensor], network: nn.Module) -> Form:
    """An attack on one batch; its outcome is what it has found last."""
    found: list[Tensor] = []

    def step(batch: Batch, _: Batch) -> None:
        found[:] = [attack(*batch)]

    return Form(step, lambda: found, (network,))


def _apgd(network: Classifier, dtype: torch.dtype, images: Tensor, _labels: Tensor) -> Tensor:
    """The first iterations of AutoAttack, on all images: each begins right, as its label is what the network says.

    pyautoattack computes in float32 itself; the network gets `dtype`.
    """
    attack = pyautoattack.AutoAttack(
        lambda found: network(found.to(dtype)), eps=EVALUATION.epsilon, seed=0, device=images.device
    ).apgd
    attack.n_iter = EVALUATION.attack_steps
    return attack.perturb(images)


def _attacked(case: Case, device: torch.device, dtype: torch.dtype) -> Classifier:
    """The network as `arnas.evaluation` gives it to attacks."""
    return attackable(runtime.place(_network(case, dtype), device).eval().requires_grad_(False))()


def _layout(case: Case) -> Layout:
    """The paper's placement; of three cells, one of each kind."""
    return Layout.paper(case.layers) if case.layers > 3 else Layout.parse("A1 D2 R2")


def _supernet(case: Case, dtype: torch.dtype) -> Supernet:
    torch.manual_seed(0)
    return Supernet(_layout(case), case.channels, CLASSES).to(dtype)


def _network(case: Case, dtype: torch.dtype) -> Classifier:
    """The published genotype, its batch norms with the statistics of random images.

    Without them a deep network's gradients are too small for a float, and arithmetic on such numbers is slow.
    """
    torch.manual_seed(0)
    cells, _ = genotype.load("arnas-cifar10")
    network = build(
        {
            "architecture": "genotype",
            "cells": cells.to_json(),
            "layout": str(_layout(case)),
            "channels": case.channels,
            "classes": CLASSES,
            "channels_in": 3,
            "auxiliary": True,
            "drop_path": 0.0,
        }
    )
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of all that was seen
    with torch.no_grad():
        network.with_auxiliary(torch.rand(8, 3, case.pixels, case.pixels))
    for norm in norms:
        norm.momentum = 0.1
    return network.to(dtype)
