"""Trainings in double precision, which the processes of test_distributed.py run (no test itself)."""

import os
from contextlib import nullcontext

import torch

from arnas.checkpoints import Keeper
from arnas.data import image_set
from arnas.errors import Diverged, Interrupted
from arnas.stages import retrain
from arnas.training import distributed, losses


def threads():
    return os.environ["OMP_NUM_THREADS"]


def leave():
    os._exit(1)


def as_doubles(images):
    return images.double() / 255


def train(images, folder, jobs):
    """Run trainings one after another, each a dict: name, settings, and what shall happen in some process.

    Returns:
        For each, what the stage returned or the name of what it raised.
    """
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    image_set.as_pixels = as_doubles
    with distributed.joined(torch.device("cpu")):
        distributed.joined = nullcontext
        return [_train(images, folder, **job) for job in jobs]


def _train(images, folder, name, settings, genotype=None, event=None, victim=None, interval=3600.0, checkpoints=None):
    Keeper.__init__.__defaults__ = (interval,)
    offer, natural = Keeper.offer, losses.LOSSES["natural"]
    process, step, what = event or (None, None, None)
    steps = 0

    def happen_and_offer(keeper, capture):
        nonlocal steps
        steps += 1
        if what != "nan" and (os.environ["RANK"], steps) == (str(process), step):
            os.kill(victim or os.getpid(), what)
        offer(keeper, capture)

    def spoiled(*batch):
        loss, logits = natural(*batch)
        return (loss * float("nan") if (os.environ["RANK"], steps) == (str(process), step) else loss), logits

    if what == "nan":
        losses.LOSSES["natural"] = spoiled
    Keeper.offer = happen_and_offer
    try:
        kept = checkpoints or folder / "c"
        return retrain.run(
            images, folder / name, settings, name=name, genotype=genotype, checkpoints=kept, device="cpu"
        )
    except (Diverged, Interrupted) as error:
        return type(error).__name__
    finally:
        Keeper.offer, losses.LOSSES["natural"] = offer, natural
