"""Run a stage in processes that kill themselves amid the work, then in one that finishes (no test itself).

Usage: kill_and_resume.py STAGE INPUTS EXTRA SETTINGS OUTPUT CHECKPOINTS KILLS, with INPUTS, EXTRA (keyword arguments),
SETTINGS and KILLS as JSON. The n-th process sends itself SIGKILL at its KILLS[n]-th unit of progress: a training step,
or a pass through an attacked model.
"""

import importlib
import json
import os
import signal
import sys

import torch

from arnas import config
from arnas.checkpoints import Keeper

stage, inputs, extra, settings, output, checkpoints, kills = sys.argv[1:]
Keeper.__init__.__defaults__ = (0.02,)  # seconds between two checkpoints
offer = Keeper.offer
module = importlib.import_module(f"arnas.stages.{stage}")


def run_until(kill):
    torch.set_num_threads(1)
    passes = 0

    def count_and_offer(keeper, capture):
        nonlocal passes
        passes += 1
        if passes == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        offer(keeper, capture)

    Keeper.offer = count_and_offer
    chosen = config.validate(getattr(config, stage.capitalize()), json.loads(settings), "test")
    module.run(*json.loads(inputs), output, chosen, **json.loads(extra), checkpoints=checkpoints, device="cpu")


for kill in json.loads(kills):
    child = os.fork()
    if child == 0:
        run_until(kill)
        os._exit(0)  # not reached in time: the test shall notice
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, f"was done before pass {kill}"
    assert not os.path.exists(output)
run_until(None)
