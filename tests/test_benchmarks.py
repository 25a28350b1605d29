import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
BENCHMARKS = sorted(file for file in FOLDER.glob("*.py") if file.stem != "ablation")  # tests/test_ablation.py
SMALL = ["--channels", "2", "--layers", "3", "--batch-size", "4", "--image-size", "8", "--repeats", "1"]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_benchmark_shows_equality_and_prints_a_ratio(path):
    command = [sys.executable, str(path), *SMALL, "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert float(re.search(r"agree within (\S+)", output)[1]) < 1e-9
    assert float(re.search(r"ratio +median ([\d.]+)x", output)[1]) > 0
