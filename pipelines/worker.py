"""The process in which KFP runs a pipeline on this machine; pipelines/local.py starts it and watches it.

`python -m pipelines.worker '{"output": FOLDER, "pipeline": NAME, "arguments": {...}, "files": {...}}'`: its standard
input is a lifeline, which ends when the watching process does.
"""

import json
import os
import shutil
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

from kfp import local

from arnas import artifacts
from pipelines.generate import build
from pipelines.placement import load


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the tasks; this process waits until they have saved
    threading.Thread(target=_die_with_watcher, daemon=True).start()
    told = json.loads(sys.argv[1])
    output = Path(told["output"])
    warnings.filterwarnings("ignore", message=".*custom or non-Python base image", category=RuntimeWarning)

    # KFP replaces "python3" by sys.executable all through its shell command, unquoted, and in every path there
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sys.executable = "python3"
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(output / "runs"))
    site = load()
    once = site.retries.model_copy(update={"count": 0})  # what fails here would fail again
    here = site.model_copy(update={"parallelism": 1, "preflight": False, "retries": once})  # one machine, no cluster
    _publish(output, told["files"], build(told["pipeline"], here)(**told["arguments"]).outputs)


def _publish(output: Path, files: dict[str, str], found: dict[str, Any]) -> None:
    """Put the results where the user looks for them, each at once or not at all."""
    with artifacts.publish(output / "models") as scratch:
        for network in found["networks"]:
            name = json.loads(Path(network.path, "artifact.json").read_text(encoding="utf-8"))["content"]["name"]
            shutil.copytree(network.path, scratch / name.replace("/", "-"))
    for key, name in files.items():
        with artifacts.publish(output / name) as scratch:
            shutil.copyfile(found[key].path, scratch)


def _die_with_watcher() -> None:
    """However the watching process ends, even by SIGKILL, no task computes on without it."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
