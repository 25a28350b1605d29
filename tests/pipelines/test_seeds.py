"""The pipeline of seeds runs, on this machine, with everything as small as it can be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.generate import ROOT

SCRIPT = """
import os, sys
from pathlib import Path
from kfp import local
from pipelines import placement, seeds

root, shards = sys.argv[1], sys.argv[2].split(",")
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
sys.executable = "python3"
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=root)
overrides = {"search.epochs": 1, "retrain.epochs": 1, "whitebox.autoattack_images": 0, "prepare.train_limit": 128}
outputs = seeds.build(placement.load())(
    preset="smoke", seeds=["3", "8"], shards=shards, overrides=overrides, checkpoints=f"{root}/checkpoints", gpus="0"
).outputs
Path(root, "summary").write_text(outputs["summary"].path)
"""


@pytest.mark.timeout(600)
def test_every_seed_is_searched_trained_and_attacked_and_the_summary_tells_of_both(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path), "1/2,2/2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    summary = json.loads(Path((tmp_path / "summary").read_text()).read_text())
    assert [row["seed"] for row in summary["seeds"]] == [3, 8]
    assert summary["seeds"][0]["genotype"] != summary["seeds"][1]["genotype"]
    assert summary["accuracy"]["clean"]["seeds"] == 2
