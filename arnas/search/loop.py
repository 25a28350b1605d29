"""The search: bilevel descent on weights and architecture of the supernet (paper algorithm 1)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from arnas import runtime
from arnas.attacks import PGD
from arnas.checkpoints import Keeper
from arnas.config import Search
from arnas.data.image_set import ImageSet, augment
from arnas.graphs import Graphed
from arnas.search.combination import combination, min_norm_weight
from arnas.search.hypergradient import VirtualStep, hypergradients
from arnas.search.joint import JointAttack
from arnas.space import genotype
from arnas.space.layout import Layout, choose_stem_stride
from arnas.space.supernet import Supernet

COLUMNS = (
    "epoch",
    "step",
    "natural_loss",
    "adversarial_loss",
    "train_loss",
    "gamma",
    "natural_norm",
    "adversarial_norm",
)


@dataclass
class History:
    """What is recorded: a row of `COLUMNS` a step, and the architecture at the end of every epoch."""

    steps: list[list[float]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def collapses(self, settings: Search) -> list[str]:
        """A sentence for each normal cell kind of the layout that ended with too many skip connections."""
        skips = self.epochs[-1]["skips"]
        return [
            f"The {kind} cell collapsed to {skips[kind]} skip connections of 8 edges."
            for kind in ("accurate", "robust")
            if kind in layout(settings).kinds() and skips[kind] >= settings.collapse_limit
        ]


class SearchStep:
    """One step of the search, with the optimizers of both levels.

    Weights w: SGD on the adversarial loss of the training batch. Architecture a: Adam on the combined hypergradients of
    the natural loss and of lambda times the adversarial loss, both of the validation batch.
    """

    def __init__(self, supernet: Supernet, settings: Search):
        self.supernet, self.settings = supernet, settings
        self.weights, self.architecture = supernet.weights(), list(supernet.architecture.values())
        self.combine = combination(settings.combination)
        #: the supernet, but for double backward, which graphs have not
        self.model = supernet if settings.hypergradient == "exact" else Graphed(supernet)
        self.attack = JointAttack(PGD(settings.epsilon, settings.step_size, settings.attack_steps))
        self.weight_optimizer = torch.optim.SGD(
            self.weights, settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay
        )
        self.architecture_optimizer = torch.optim.Adam(
            self.architecture,
            settings.architecture_learning_rate,
            betas=(0.5, 0.999),
            weight_decay=settings.architecture_weight_decay,
        )

    def __call__(
        self, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], place: str = "this step"
    ) -> dict[str, float]:
        """Take a step.

        Args:
            train, validation: Images [B, C, H, W] in [0, 1] and labels [B], of the two halves of the training set.
            place: Where in the search this is, for an error message.

        Returns:
            The figures of `COLUMNS` from natural_loss on.

        Raises:
            Diverged: A loss or gradient is not finite; weights and architecture are not stepped with it.
        """
        (_, train_labels), (images, labels) = train, validation
        train_adversarial, adversarial = self.attack(self.model, train, validation)
        train_loss = self._loss(train_adversarial, train_labels)

        (natural_gradient, adversarial_gradient), (natural_loss, adversarial_loss) = hypergradients(
            [self._loss(images, labels), self._loss(adversarial, labels)],
            train_loss,
            self.weights,
            self.architecture,
            self._virtual_step(),
            self.settings.hypergradient,
        )
        # the hypergradient is homogeneous in the objective, so lambda can come last
        adversarial_gradient = self.settings.adversarial_weight * adversarial_gradient
        norms = [torch.linalg.vector_norm(gradient).item() for gradient in (natural_gradient, adversarial_gradient)]
        found = {"natural loss": natural_loss, "adversarial loss": adversarial_loss}
        found |= dict(zip(("natural hypergradient norm", "adversarial hypergradient norm"), norms, strict=True))
        runtime.require_finite(found, "search", place)
        self._descend_architecture(self.combine(natural_gradient, adversarial_gradient))
        return {
            "natural_loss": natural_loss,
            "adversarial_loss": adversarial_loss,
            "train_loss": self._descend_weights(train_loss, place),
            "gamma": min_norm_weight(natural_gradient, adversarial_gradient).item(),
            "natural_norm": norms[0],
            "adversarial_norm": norms[1],
        }

    def set_epoch(self, epoch: int) -> None:
        """Set the weights' learning rate, for the real and the virtual step, on its cosine."""
        first, last = self.settings.learning_rate, self.settings.final_learning_rate
        rate = last + (first - last) * (1 + math.cos(math.pi * epoch / self.settings.epochs)) / 2
        self.weight_optimizer.param_groups[0]["lr"] = rate

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "supernet": self.supernet.state_dict(),
            "weight_optimizer": self.weight_optimizer.state_dict(),
            "architecture_optimizer": self.architecture_optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.supernet.load_state_dict(state["supernet"])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.architecture_optimizer.load_state_dict(state["architecture_optimizer"])

    def _loss(self, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        return lambda: functional.cross_entropy(self.model(images), labels)

    def _virtual_step(self) -> VirtualStep:
        group, state = self.weight_optimizer.param_groups[0], self.weight_optimizer.state
        velocity = [state[w]["momentum_buffer"] if w in state else torch.zeros_like(w) for w in self.weights]
        return VirtualStep(group["lr"], group["momentum"], group["weight_decay"], velocity)

    def _descend_architecture(self, direction: Tensor) -> None:
        sizes = [alpha.numel() for alpha in self.architecture]
        for alpha, part in zip(self.architecture, direction.split(sizes), strict=True):
            alpha.grad = part.view_as(alpha)
        self.architecture_optimizer.step()
        self.architecture_optimizer.zero_grad()

    def _descend_weights(self, train_loss: Callable[[], Tensor], place: str) -> float:
        loss = train_loss()
        for weight, gradient in zip(self.weights, torch.autograd.grad(loss, self.weights), strict=True):
            weight.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.settings.gradient_clip)
        runtime.require_finite({"training loss": loss.item(), "gradient norm": norm.item()}, "search", place)
        self.weight_optimizer.step()
        self.weight_optimizer.zero_grad()
        return loss.item()


def search(images: ImageSet, settings: Search, keeper: Keeper) -> tuple[Supernet, History]:
    """Search until the last epoch, from the checkpoint if there is one.

    Raises:
        Diverged: A loss is not finite.
        Interrupted: The process was asked to stop.
    """
    device = images.device
    runtime.seed(settings.seed, "search", "supernet")
    stem_stride = choose_stem_stride(settings.stem_stride, images.shape)
    supernet = Supernet(layout(settings), settings.channels, len(images.classes), images.shape[0], stem_stride)
    supernet = runtime.place(supernet, device)
    step, history, epoch, done = SearchStep(supernet, settings), History(), 0, 0
    if state := keeper.restore(device):
        step.load(state["step"])
        history = History(**state["history"])
        epoch, done = state["position"]

    halves = images.splits["weights"], images.splits["architecture"]
    steps = min(len(half) for half in halves) // settings.batch_size
    runtime.say_resumed("search", epoch * steps + done, settings.epochs * steps, "steps")
    progress = runtime.Progress("search", settings.epochs * steps, epoch * steps + done)
    while epoch < settings.epochs:
        step.set_epoch(epoch)
        runtime.seed(settings.seed, "search", "order", epoch)
        orders = [half[torch.randperm(len(half)).to(device)][: steps * settings.batch_size] for half in halves]
        left = torch.stack(orders)[:, done * settings.batch_size :]
        for index, batch in enumerate(images.batches(left, settings.batch_size), done):
            runtime.seed(settings.seed, "search", epoch, index)
            train, validation = _augmented(*batch, settings)
            figures = step(train, validation, f"epoch {epoch}, step {index}")
            history.steps.append([epoch, index, *figures.values()])
            done = index + 1
            progress.advance({"epoch": epoch} | {k: figures[k] for k in ("natural_loss", "adversarial_loss", "gamma")})
            position = epoch, done
            keeper.offer(lambda: _state(step, history, position))  # noqa: B023 (called at once)
        history.epochs.append(_record(supernet, epoch))
        epoch, done = epoch + 1, 0
    progress.close()
    keeper.save(_state(step, history, (epoch, done)))
    return supernet, history


def layout(settings: Search) -> Layout:
    """The layout that the settings ask for; the paper's by default."""
    return Layout.parse(settings.layout) if settings.layout else Layout.paper(settings.layers)


def _augmented(images: Tensor, labels: Tensor, settings: Search) -> list[tuple[Tensor, Tensor]]:
    """The batches of both halves, from uint8 [2, B, C, H, W] and labels [2, B]."""
    return [(augment(half, settings.crop_padding, settings.flip), y) for half, y in zip(images, labels, strict=True)]


def _state(step: SearchStep, history: History, position: tuple[int, int]) -> dict[str, Any]:
    return {"step": step.state(), "history": vars(history), "position": position}


def _record(supernet: Supernet, epoch: int) -> dict[str, Any]:
    """Genotype, entropy in nats of the operation weights (mean over edges), skip connections, operation weights."""
    found = genotype.derive(supernet.architecture)
    weights = {kind: torch.softmax(a.detach().cpu().double(), -1) for kind, a in supernet.architecture.items()}
    return {
        "epoch": epoch,
        "genotype": found.to_json(),
        "entropy": {kind: -(w * w.log()).sum(-1).mean().item() for kind, w in weights.items()},
        "skips": found.skip_connections(),
        "weights": {kind: w.tolist() for kind, w in weights.items()},
    }
