"""Run the whole pipeline, or a study, on this machine: no cluster, no container.

KFP works in a process of its own, which leads a process group with all of its tasks (pipelines/worker.py). This process
stays light and only watches: it keeps the log, shows what a person wants to see, and stops the group when asked to.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from arnas import config, objects
from arnas.errors import InvalidInput
from arnas.reporting.table import table
from pipelines import studies

ROOT = Path(__file__).resolve().parents[1]

_BEGINS = re.compile(r"Executing task '|Looking for component `")  # what KFP, then the task itself, says first


@dataclass(frozen=True)
class Job:
    """What runs, and what is left in the output folder, beside `models/`.

    Args:
        pipeline: Name of the pipeline.
        arguments: Its parameters.
        files: Name of the file that each output of the pipeline becomes.
        names: Of the models, or variants, that the pipeline's loop goes through.
        parts: Tasks of a round of the loop, by their components, in order.
        goes_on: Whether other rounds go on where one has failed.
    """

    pipeline: str
    arguments: dict[str, Any]
    files: dict[str, str]
    names: list[str]
    parts: tuple[str, ...]
    goes_on: bool = False


def run(
    preset: str,
    output: str | Path | None = None,
    *,
    data: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    models: list[str] | None = None,
    device: str = "auto",
) -> int:
    """Run the pipeline; leave `report.html`, `scores.json`, `genotype.json` and `models/` in `output`.

    Args:
        preset: Name of a preset, or path of a YAML file.
        output: Folder for results, checkpoints and the log (default: out/PRESET).
        data: Where the data set of the settings' section prepare lies: a folder, or s3://BUCKET/PREFIX.
        overrides: Changes of the preset, nested or dotted.
        models: Which of the settings' models to train (default: all).
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        Exit status: 0, 1 where a task failed, 128 + N where signal N asked to stop.

    Raises:
        InvalidInput: A setting is wrong, the data is missing, or another run works in `output`; nothing was started.
    """
    overrides, where = overrides or {}, _absolute(data)
    settings = config.load(preset, overrides | ({"prepare.path": where} if data else {}))
    _require_data_here(settings, {"prepare": "--data", "transfer": "--set transfer.path="})
    _require_device(device)
    models = list(settings.models) if models is None else models
    for model in models:
        settings.recipe(model)
    output = _folder(output or Path("out") / Path(preset).stem)
    told = {"preset": preset, "data": where, "models": models, "overrides": overrides}
    job = Job(
        "arnas",
        told | _here(output, device),
        {"genotype": "genotype.json", "scores": "scores.json", "report": "report.html"},
        models,
        ("retrain", "whitebox", "merge"),
    )
    status = _carry_out(output, job)
    if status == 0:
        print(f"\n{table(json.loads((output / 'scores.json').read_text()))}\n")
        print(f"report  {output / 'report.html'}\nscores  {output / 'scores.json'}")
    return status


def study(
    name: str,
    preset: str,
    variants: list[studies.Variant],
    output: str | Path | None = None,
    *,
    data: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    genotype: str | None = None,
    device: str = "auto",
) -> int:
    """Run a study; leave `study.html`, `study.json`, `study.csv` and `models/` in `output`.

    Args:
        name: One of STUDIES.
        preset: Name of a preset, or path of a YAML file.
        variants: What is varied; see `studies.told`.
        output: Folder for results, checkpoints and the log (default: out/NAME-PRESET).
        data: Where the data set lies: a folder, or s3://BUCKET/PREFIX.
        overrides: Changes of the preset that all variants have.
        genotype: Genotype of all variants, where the study neither searches nor varies it: a published one's name, a
            file, or s3://... (default: arnas-cifar10).
        device: auto, cpu, cuda, cuda:N or mps.

    Returns:
        As `run`; other variants go on where one has failed.

    Raises:
        InvalidInput: As `run`, or a variant is wrong; nothing was started.
    """
    about, where = studies.STUDIES[name], _absolute(data)
    overrides = studies.common(name, overrides or {}, genotype)
    checked = overrides | ({"prepare.path": where} if data else {})
    option = "NAME=PATH" if about.prepares else "--data"
    for settings in studies.require(name, variants, preset, checked):
        _require_data_here(settings, {"prepare": option})
    _require_device(device)
    output = _folder(output or Path("out") / f"{name}-{Path(preset).stem}")
    told = {"preset": preset, "data": where, "variants": variants, "overrides": overrides}
    searched = ("search", "derive") if about.searches else ()
    prepared = ("prepare",) if about.prepares else ()
    job = Job(
        name,
        told | _here(output, device),
        {"report": "study.html", "result": "study.json", "table": "study.csv"},
        [str(variant["name"]) for variant in variants],
        (*prepared, *searched, "retrain", "whitebox", "merge"),
        goes_on=True,
    )
    status = _carry_out(output, job)
    if status == 0:
        found = json.loads((output / "study.json").read_text())
        rows = {row["name"]: row["scores"] | {"parameters": row["parameters"]} for row in found["variants"]}
        print(f"\n{table({'models': rows})}\n")
        for attack, spread in (found["accuracy"] or {}).items():
            print(f"{attack}: mean {spread['mean']:.1%}, spread {spread['spread']:.1%} over {spread['seeds']} seeds")
        print("\n".join(f"{kind:<7} {output / f'study.{kind}'}" for kind in ("html", "json", "csv")))
    return status


def _carry_out(output: Path, job: Job) -> int:
    with _lock(output) as lock:
        _clean(output, job)
        return _watch(output, job, lock)


def _here(output: Path, device: str) -> dict[str, Any]:
    """Parameters of every pipeline that this machine answers."""
    return {
        "checkpoints": str(output / "checkpoints"),
        "device": device,
        "gpus": "0",  # none is promised here; device says what to use
        "endpoint": "",
    }


def _folder(output: str | Path) -> Path:
    return Path(output).expanduser().resolve()


def _absolute(data: str | Path | None) -> str:
    if not data or objects.is_place(data):
        return str(data or "")
    return str(Path(data).expanduser().resolve())


def _require_device(device: str) -> None:
    if device not in ("auto", "cpu"):
        from arnas import runtime  # torch, which this process does without otherwise

        runtime.device(device)


def _require_data_here(settings: config.Settings, options: dict[str, str]) -> None:
    require_data(settings, options)
    for section, option in options.items():
        path, fetched = getattr(settings, section).path, getattr(settings, section).download
        if path and not fetched and not objects.is_place(path) and not Path(path).exists():  # a place is asked later
            raise InvalidInput(f"There is no {path}; {option} must name the data set of section {section}.")


def require_data(settings: config.Settings, options: dict[str, str]) -> None:
    """Refuse a data set that does not come with the library and of which nobody said where it lies.

    Args:
        settings: Of the run.
        options: How that is said for each section.

    Raises:
        InvalidInput: It was not.
    """
    for section, option in options.items():
        prepare = getattr(settings, section)
        if not prepare.located:
            raise InvalidInput(
                f"The data set of section {section}, {prepare.dataset}, is not bundled; say where it lies by {option}."
            )


@contextlib.contextmanager
def _lock(output: Path) -> Iterator[int]:
    """Hold the output folder; the kernel frees the lock when the last process that has it open is gone."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = (output / ".lock").open("w")
    except OSError as error:
        raise InvalidInput(
            f"{output} cannot be written: {error.strerror}; name a folder with space and rights."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(f"Another run works in {output}; wait for its end, or name another --output.") from None
        yield file.fileno()


def _clean(output: Path, job: Job) -> None:
    """Drop KFP's files of earlier runs, whose results are in `output`, and what a killed run left half written."""
    runs = output / "runs"
    for folder in [*runs.glob(f"{job.pipeline}-[0-9]*"), runs / "tmp"]:
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("models", *job.files.values()):
        for folder in output.glob(f".{name}.*"):
            shutil.rmtree(folder, ignore_errors=True)


def _watch(output: Path, job: Job, lock: int) -> int:
    """Start the worker, follow its output to the end, and leave no process behind."""
    scratch = output / "runs" / "tmp"  # KFP leaves the source of every task in the temporary folder
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(scratch),
    }
    told = json.dumps({"output": str(output)} | {key: getattr(job, key) for key in ("pipeline", "arguments", "files")})
    path = output / "pipeline.log"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", buffering=1) as log, _Worker(told, environment, lock) as worker:
            view = _View(job.names, job.parts)
            for line in worker.lines:
                line = re.sub(r"\x1b\[\d*m", "", line.rstrip("\n"))
                log.write(line + "\n")
                view.show(line.strip())
                failed = view.failures and not job.goes_on
                if failed or (worker.stopped_by and _BEGINS.search(line)):  # KFP would go on with other tasks
                    worker.stop(signal.SIGKILL)
            view.end()
    except OSError as error:
        raise InvalidInput(
            f"{output} cannot be written: {error.strerror}; name a folder with space and rights."
        ) from error
    shutil.rmtree(scratch, ignore_errors=True)
    if worker.stopped_by:
        print("Stopped; what was computed is kept, and the same command goes on from there.", file=sys.stderr)
        return 128 + worker.stopped_by
    if view.failures or worker.process.returncode:
        print("\n".join([*view.explained(), f"The whole log is {path}"]), file=sys.stderr)
        return 1
    return 0


class _Worker:
    """The process group of KFP and its tasks; it ends when the context does, and when this process does."""

    def __init__(self, told: str, environment: dict[str, str], lock: int):
        self.stopped_by = 0
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.worker", told],
            stdin=subprocess.PIPE,  # the lifeline
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # so that Ctrl-C reaches only us, and we can stop all of them
            pass_fds=[lock],
        )
        assert self.process.stdout is not None
        self.lines: IO[str] = self.process.stdout

    def __enter__(self) -> "_Worker":
        self._handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop(signal.SIGKILL)
        self.process.communicate()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def stop(self, number: int) -> None:
        """Send a signal to the whole group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
            os.killpg(self.process.pid, number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by:  # asked twice: the user does not want to wait for the step
            self.stop(signal.SIGKILL)
        else:
            self.stopped_by = number
            print("\nStopping when the running step is done and saved; once more stops at once.", file=sys.stderr)
            self.stop(signal.SIGTERM)


class _View:
    """Shows of KFP's output what a person wants to see: tasks as they begin and end, and what our stages say."""

    def __init__(self, names: list[str], parts: tuple[str, ...]):
        self.failures: list[str] = []
        # KFP calls tasks by their component; those of a loop have several, and the first of them begins each round
        self._names, self._parts, self._name = iter(names), parts, ""
        self._data = iter(["", "transfer"])
        self._task = "the pipeline"
        self._begun = time.monotonic()
        self._last: deque[str] = deque(maxlen=20)
        self._redraw = False

    def show(self, line: str) -> None:
        if match := re.search(r"Executing task '(.+)'$", line):
            self._task = self._called(re.sub(r"-\d+$", "", match[1]))
            self._begun = time.monotonic()
            self._last.clear()
            self._print(f"{self._task} ...")
        elif match := re.search(r"Task '.+' finished with status (\w+)$", line):
            taken = clock(time.monotonic() - self._begun)
            if match[1] == "SUCCESS":
                self._print(f"{self._task} done in {taken}")
            else:
                self._print(f"{self._task} failed after {taken}")
                self.failures.append(self._why())
        elif re.match(r"\[[a-z]", line):
            self._last.clear()  # what KFP says of the task's input
            self._print(line)
        if line:
            self._last.append(line)

    def end(self) -> None:
        if self._redraw:
            print()

    def explained(self) -> list[str]:
        """Why each task failed that did, or the whole."""
        return self.failures or [self._why()]

    def _called(self, component: str) -> str:
        """A task's name for people: with the model, variant or data set that it is about."""
        which = next(self._data, "") if component == "prepare" and "prepare" not in self._parts else ""
        if component in self._parts:
            if component == self._parts[0]:
                self._name = next(self._names, "")
            which = self._name
        return f"{component} {which}".strip()

    def _why(self) -> str:
        """Our own sentence where the task ended with one; else its last lines."""
        for line in reversed(self._last):
            if match := re.match(r"arnas\.errors\.\w+: (.+)", line):
                return f"{self._task} failed: {match[1]}"
        return "\n    ".join([f"{self._task} failed; its last lines:", *self._last])

    def _print(self, line: str) -> None:
        bar = "%|" in line and sys.stdout.isatty()
        if self._redraw:
            print("\r\x1b[2K" if bar else "\n", end="")
        print(line[: shutil.get_terminal_size().columns - 1] if bar else line, end="" if bar else "\n", flush=True)
        self._redraw = bar


def clock(seconds: float) -> str:
    """Minutes and seconds, such as 1:12, and hours where there are some."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
