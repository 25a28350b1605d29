"""Training of one network, by any of the losses; the epoch kept is the most robust on the hold-out.

Robust accuracy on held-out data peaks long before the last epoch (robust overfitting, Rice et al. 2020); both are kept.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from arnas import runtime
from arnas.attacks import PGD
from arnas.checkpoints import Keeper
from arnas.config import Retrain
from arnas.data import image_set
from arnas.data.image_set import ImageSet, augment
from arnas.space.classifier import Classifier
from arnas.space.folding import attackable
from arnas.training import distributed
from arnas.training.losses import Objective

#: Images attacked at once on the hold-out
EVALUATION_BATCH = 250


@dataclass
class TrainingState:
    """How far a training has come; with the network and optimizer, all that a resumed one needs."""

    epoch: int = 0
    step: int = 0
    totals: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "correct": 0.0, "count": 0.0})
    epochs: list[dict[str, float]] = field(default_factory=list)  # one record a finished epoch
    best: dict[str, Tensor] = field(default_factory=dict)  # state of the best epoch so far

    def best_epoch(self, recipe: Retrain) -> dict[str, float]:
        """The record of the epoch with the best robust accuracy on the hold-out, the earliest of equals.

        Natural training is not about robustness: there it is the best clean accuracy.
        """
        accuracy = "clean" if recipe.loss == "natural" else "robust"
        return max(self.epochs, key=lambda record: record[accuracy])


def train(network: Classifier, images: ImageSet, recipe: Retrain, keeper: Keeper) -> TrainingState:
    """Train until the last epoch, from the checkpoint if there is one; `network` ends as the last epoch left it.

    Trains on both halves of the training set, and selects on the hold-out, never on the test set.

    Raises:
        Diverged: A loss is not finite.
        Interrupted: The process was asked to stop.
    """
    device = images.device
    runtime.place(network, device)
    averaged = copy.deepcopy(network) if recipe.weight_averaging else None
    objective = distributed.parallel(Objective(network, recipe))
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
    )
    progress = TrainingState()
    if state := keeper.restore(device):
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        progress = TrainingState(**state["progress"])
        if averaged is not None:
            averaged.load_state_dict(state["averaged"])

    def capture() -> dict[str, Any]:
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(progress)}
        return state | ({"averaged": averaged.state_dict()} if averaged is not None else {})

    indices = torch.cat([images.splits["weights"], images.splits["architecture"]])
    steps = len(indices) // recipe.batch_size  # the last, smaller batch is dropped
    done, total = progress.epoch * steps + progress.step, recipe.epochs * steps
    distributed.require_same(
        done, "The processes found different checkpoints; name a folder or bucket of checkpoints that all of them see."
    )
    runtime.say_resumed(keeper.stage, done, total, "steps")
    bar = runtime.Progress(keeper.stage, total, done)
    while progress.epoch < recipe.epochs:
        runtime.seed(recipe.seed, "retrain", "order", progress.epoch)
        order = indices[torch.randperm(len(indices)).to(device)][: steps * recipe.batch_size]
        left = order[progress.step * recipe.batch_size :]
        for step, (chosen, labels) in enumerate(images.batches(left, recipe.batch_size), progress.step):
            runtime.seed(recipe.seed, "retrain", progress.epoch, step)
            optimizer.param_groups[0]["lr"] = learning_rate(recipe, progress.epoch + step / steps)
            batch = augment(chosen, recipe.crop_padding, recipe.flip, recipe.cutout)
            optimizer.zero_grad()
            with runtime.precision(recipe.precision, device), distributed.share(len(batch)) as part:
                mean_loss, logits = objective(batch[part], labels[part])
                # the processes' gradients are averaged, so a share of more samples weighs more
                (mean_loss * (len(logits) * distributed.size() / len(batch))).backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip)
            right = int((logits.argmax(-1) == labels[part]).sum())
            loss, correct = distributed.totals(mean_loss.item() * len(logits), right)
            place = f"epoch {progress.epoch}, step {step}"
            runtime.require_finite({"loss": loss, "gradient norm": norm.item()}, keeper.stage, place)
            optimizer.step()
            if averaged is not None:
                _average(averaged, network, recipe.weight_averaging)
            _add(progress.totals, {"loss": loss, "correct": correct, "count": len(batch)})
            progress.step = step + 1
            bar.advance({"epoch": progress.epoch, "loss": loss / len(batch)} | _latest(progress))
            keeper.offer(capture)
        keeper.save(capture())  # the hold-out may take minutes
        _finish_epoch(progress, averaged or network, images, recipe)
    bar.close()
    keeper.save(capture())
    if averaged is not None:
        network.load_state_dict(averaged.state_dict())
    return progress


def learning_rate(recipe: Retrain, epoch: float) -> float:
    """The learning rate at a time in epochs, 0 <= epoch < recipe.epochs."""
    elapsed = epoch / recipe.epochs
    if recipe.schedule == "piecewise":
        drops = sum(milestone <= (elapsed if milestone < 1 else epoch) for milestone in recipe.milestones)
        return recipe.learning_rate * float(10.0**-drops)
    return recipe.learning_rate * min(elapsed / 0.4, (1 - elapsed) / 0.6)


@torch.no_grad()
@runtime.precision("fp32")
def holdout_accuracy(network: Classifier, images: ImageSet, recipe: Retrain) -> dict[str, float]:
    """Clean accuracy, and robust accuracy under PGD of `selection_steps`, on the hold-out.

    Only what is right when clean is attacked, packed into full batches.
    """
    attack = PGD(recipe.epsilon, max(recipe.epsilon / 4, 1e-12), recipe.selection_steps)
    indices = images.splits["holdout"][: recipe.selection_images]
    model = attackable(network)().eval()
    clean = _still_right(model, images, indices)
    robust = _still_right(model, images, clean, attack)
    return {"clean": len(clean) / len(indices), "robust": len(robust) / len(indices)}


def _still_right(model: nn.Module, images: ImageSet, indices: Tensor, attack: PGD | None = None) -> Tensor:
    """Those of the images, by index, that the model gets right, after an attack if there is one."""
    found = [torch.zeros(0, dtype=torch.int64, device=images.device)]
    for chosen, labels in images.batches(indices, EVALUATION_BATCH):
        batch = image_set.as_pixels(chosen)
        right = torch.zeros_like(labels)
        with distributed.share(len(batch)) as part:
            own = attack(model, batch[part], labels[part]) if attack else batch[part]
            right[part] = (model(own).argmax(-1) == labels[part]).long()
        found.append(distributed.total(right))
    return indices[torch.cat(found).bool()]


def _finish_epoch(progress: TrainingState, network: Classifier, images: ImageSet, recipe: Retrain) -> None:
    """Record the epoch, keep its weights if it is the best, and begin the next."""
    runtime.seed(recipe.seed, "retrain", "holdout", progress.epoch)
    totals = progress.totals
    record = {
        "epoch": progress.epoch,
        "learning_rate": learning_rate(recipe, progress.epoch + 0.5),
        "train_loss": totals["loss"] / totals["count"],
        "train_accuracy": totals["correct"] / totals["count"],
    } | holdout_accuracy(network, images, recipe)
    progress.epochs.append(record)
    if progress.best_epoch(recipe) is record:
        progress.best = {name: value.clone() for name, value in network.state_dict().items()}
    progress.epoch, progress.step, progress.totals = progress.epoch + 1, 0, dict.fromkeys(totals, 0.0)


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Exponential moving average of the parameters; buffers (batch norm statistics) are averaged already."""
    torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 - decay)
    for target, source in zip(averaged.buffers(), network.buffers(), strict=True):
        target.copy_(source)


def _add(totals: dict[str, float], figures: dict[str, float]) -> None:
    for name, figure in figures.items():
        totals[name] += figure


def _latest(progress: TrainingState) -> dict[str, float]:
    return {key: progress.epochs[-1][key] for key in ("clean", "robust")} if progress.epochs else {}
