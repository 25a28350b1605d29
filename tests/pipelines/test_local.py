"""`python -m pipelines run`: refusals, what a watcher sees, and the whole pipeline killed, resumed and reused."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from arnas import artifacts
from pipelines import local
from pipelines.__main__ import main
from pipelines.local import ROOT

PRESET = "smoke"
# AutoAttack and the glyphs take long and have tests of their own
QUICK = ["--models", "searched", "resnet18", "--set", "whitebox.autoattack_images=0"]
QUICK += ["--set", "transfer.dataset=digits"]


# ---------------------------------------------------------------------------------------------- refused before a start


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--preset", "smok"], r"There is no preset 'smok'; name one of .*smoke"),
        (["--preset", PRESET, "--set", "search.epoch=3"], r"no setting search\.epoch; near it are epochs"),
        (["--preset", PRESET, "--set", "search.epochs=0"], r"search\.epochs = 0"),
        (
            ["--preset", PRESET, "--set", "whitebox.epsilon=9/8"],
            r"whitebox\.epsilon = '9/8': 1\.125 is outside \[0, 1\]",
        ),
        (["--preset", PRESET, "--set", "search.epochs"], r"'search\.epochs' sets nothing; write KEY=VALUE"),
        (["--preset", PRESET, "--data", "/no/such/place"], r"There is no /no/such/place; --data must name"),
        (
            ["--preset", PRESET, "--data", "s3:/bucket/place"],
            r"s3:/bucket/place is neither .*; write s3://BUCKET/PREFIX",
        ),
        (["--preset", PRESET, "--set", "prepare.dataset=cifar10"], r"section prepare, cifar10, is not .* by --data"),
        (["--preset", PRESET, "--set", "transfer.dataset=folder"], r"section transfer, folder, .* transfer\.path"),
        (["--preset", PRESET, "--models", "nobody"], r"models has no 'nobody'; it has "),
    ],
)
def test_bad_input_is_refused_in_one_sentence_before_anything_starts(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *options, "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert re.search(sentence, message)
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_place_in_a_bucket_is_handed_to_the_tasks_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}

    def watch(output: Path, job: local.Job, lock: int) -> int:
        told.update(job.arguments)
        return 1

    monkeypatch.setattr(local, "_watch", watch)
    options = ["--preset", PRESET, "--set", "prepare.dataset=cifar10", "--set", "transfer.path=s3://bucket/other"]
    assert main(["run", *options, "--data", "s3://bucket/data", "--output", str(tmp_path / "out")]) == 1
    assert told["data"] == "s3://bucket/data" and told["overrides"]["transfer.path"] == "s3://bucket/other"


def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file")
    assert main(["run", "--preset", PRESET, "--output", str(tmp_path / "out")]) == 2
    assert "out cannot be written: File exists; name a folder" in capsys.readouterr().err


def test_a_second_run_into_the_same_output_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with local._lock(tmp_path):
        assert main(["run", "--preset", PRESET, "--output", str(tmp_path)]) == 2
    assert f"Another run works in {tmp_path}" in capsys.readouterr().err
    with local._lock(tmp_path):
        pass  # free again


# -------------------------------------------------------------------------------------------------- what a watcher sees

NOISE = """\
10:00:00.000 - INFO - Running pipeline: 'arnas'
10:00:00.000 - INFO - Executing task 'retrain'
10:00:00.000 - INFO - Streamed logs:

[KFP Executor 2026-01-01 10:00:00,000 INFO]: Got executor_input:
{
[retrain a]:  50%|#####     | 1/2
[retrain a] warning: something
unrelated
10:00:00.000 - INFO - Task 'retrain' finished with status SUCCESS
10:00:00.000 - INFO - Executing task 'whitebox-2'
Traceback (most recent call last):
arnas.errors.InvalidInput: Give it more.
exit status 1
10:00:00.000 - ERROR - Task 'whitebox-2' finished with status FAILURE
"""


def shown(text: str) -> local._View:
    view = local._View(["a", "b"], ("retrain", "whitebox", "merge"))
    for line in text.splitlines():
        view.show(line)
    view.end()
    return view


def test_the_watcher_sees_tasks_with_their_models_and_what_stages_say(capsys: pytest.CaptureFixture[str]) -> None:
    view = shown(NOISE)
    assert capsys.readouterr().out.splitlines() == [
        "retrain a ...",
        "[retrain a]:  50%|#####     | 1/2",
        "[retrain a] warning: something",
        "retrain a done in 0:00",
        "whitebox a ...",
        "whitebox a failed after 0:00",
    ]
    assert view.failures == ["whitebox a failed: Give it more."]


def test_a_failure_is_explained_by_our_own_sentence() -> None:
    assert shown(NOISE).explained() == ["whitebox a failed: Give it more."]


def test_a_failure_of_another_kind_is_explained_by_the_last_lines_of_its_task() -> None:
    (explained,) = shown(NOISE.replace("arnas.errors.InvalidInput: Give it more.", "KeyError: 3")).explained()
    assert explained.startswith("whitebox a failed; its last lines:\n")
    assert "KeyError: 3" in explained
    assert "unrelated" not in explained  # of the task before


def test_what_kfp_says_of_a_tasks_input_is_no_part_of_the_explanation() -> None:
    lines = NOISE.splitlines()
    killed = "\n".join([*lines[: lines.index("unrelated") + 1], "Task 'retrain' finished with status FAILURE"])
    (explained,) = shown(killed).explained()
    assert "executor_input" not in explained and "unrelated" in explained


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (72, "1:12"), (59.7, "1:00"), (3723, "1:02:03")])
def test_time_is_shown_as_on_a_clock(seconds: float, text: str) -> None:
    assert local.clock(seconds) == text


# ------------------------------------------------------------------------------------------------- the whole pipeline


class Run:
    """`python -m pipelines run` on the smoke preset, started in another folder than the repository's."""

    def __init__(self, output: Path, *options: str):
        self.output = output
        output.parent.mkdir(parents=True, exist_ok=True)
        words = ["run", "--preset", PRESET, "--output", output.name, "--device", "cpu", *QUICK, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=output.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            self.lines.extend(line.rstrip("\n") for line in stream)

    def until(self, pattern: str) -> None:
        deadline = time.monotonic() + 300
        while not any(re.search(pattern, line) for line in list(self.lines)):
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.02)

    def end(self) -> tuple[int, str]:
        """Exit status and what was written to stderr."""
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            errors = stream.read()
        self._reader.join()
        return self.process.wait(), errors

    def survivors(self) -> list[str]:
        """Processes that still work for this output: its path is among their arguments."""
        command = ["ps", "-Awwo", "pid=,stat=,args="]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        return [line for line in lines if str(self.output) in line and not line.split()[1].startswith("Z")]

    def assert_gone(self) -> None:
        deadline = time.monotonic() + 10
        while self.survivors():
            assert time.monotonic() < deadline, self.survivors()
            time.sleep(0.05)


def test_a_task_that_cannot_use_its_input_fails_the_run_with_its_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    run = Run(tmp_path / "out", "--set", "prepare.dataset=cifar10", "--data", str(tmp_path / "data"))
    status, errors = run.end()
    assert status == 1
    assert errors.startswith("prepare failed: ")
    assert errors.splitlines()[1] == f"The whole log is {tmp_path / 'out' / 'pipeline.log'}"
    assert "Traceback" not in errors
    assert "Traceback" in (tmp_path / "out" / "pipeline.log").read_text()
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.timeout(900)
def test_killed_interrupted_and_started_again_it_goes_on_and_ends_with_all_results(tmp_path: Path) -> None:
    output = tmp_path / "a place" / "of python3 results"  # KFP would replace the word python3

    # SIGKILL in the search: nothing computes on, the lock is free
    run = Run(output)
    run.until(r"^\[search\]")
    assert run.survivors()
    run.process.kill()
    run.end()
    run.assert_gone()

    # Ctrl-C, which a terminal sends to the whole process group, in the first training
    run = Run(output)
    run.until(r"^\[retrain")
    second = Run(output)
    assert second.end() == (2, f"Another run works in {output}; wait for its end, or name another --output.\n")
    os.killpg(run.process.pid, signal.SIGINT)
    status, errors = run.end()
    assert status == 130
    assert "the same command goes on from there" in errors
    assert not run.survivors()

    # the next start leaves a foreign folder beside KFP's own alone, and drops what a killed run left half written
    (output / "runs" / "mine").mkdir()
    (output / ".report.html.abc").mkdir()

    run = Run(output)
    status, errors = run.end()
    assert (status, errors) == (0, "")
    assert any(re.search(r"^\[search\] .*reused", line) for line in run.lines)
    assert "prepare transfer ..." in run.lines
    assert f"report  {output / 'report.html'}" in run.lines
    assert f"scores  {output / 'scores.json'}" in run.lines
    assert not any("KFP" in line or "INFO" in line for line in run.lines)
    assert "KFP Executor" in (output / "pipeline.log").read_text()
    assert "custom or non-Python base image" not in (output / "pipeline.log").read_text()

    scores = json.loads((output / "scores.json").read_text())
    assert (output / "report.html").read_text().lstrip().lower().startswith("<!doctype html")
    assert json.loads((output / "genotype.json").read_text())["schema"] == "arnas.genotype/1"
    assert sorted(path.name for path in (output / "models").iterdir()) == sorted(scores["models"])
    for name in scores["models"]:
        assert artifacts.read(output / "models" / name, "model")["content"]["name"] == name
        assert any(line.startswith(name) and f"{scores['models'][name]['parameters']:,}" in line for line in run.lines)
    assert (output / "runs" / "mine").is_dir()
    assert len(list((output / "runs").glob("arnas-*"))) == 1
    assert not list(output.glob(".report*"))
    assert not (output / "runs" / "tmp").exists()
