"""The pipeline transfer by itself: a run imports a genotype from where it lies."""

import json
import os
import subprocess
import sys
from pathlib import Path

from pipelines.generate import ROOT

CODE = """
import json, sys
from kfp import local
from pipelines.placement import load
from pipelines.transfer import build

root, arguments = sys.argv[1], json.loads(sys.argv[2])
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=root)
print(json.dumps(build(load())(**arguments).outputs["evaluation"].metadata))
"""


def test_a_genotype_is_trained_and_attacked_on_the_other_data_set(tmp_path: Path) -> None:
    changes = {"transfer.dataset": "digits", "retrain.epochs": 1, "whitebox.autoattack_images": 0, "whitebox.images": 6}
    arguments = {
        "genotype": str(ROOT / "arnas" / "space" / "genotypes" / "arnas-cifar10.json"),
        "preset": "smoke",
        "overrides": changes,
        "checkpoints": str(tmp_path / "checkpoints"),
        "device": "cpu",
        "gpus": "0",
        "endpoint": "",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, str(tmp_path / "runs"), json.dumps(arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["kind"] == "evaluation" and 0 <= figures["clean"] <= 1
