"""Checkpoints: the state of unfinished work, under the digest of what determines its result.

A state is a nest of dicts, lists, numbers, strings and tensors; it is stored as one safetensors file whose header
carries the nest as JSON, so nothing is ever unpickled. Files live in a folder, or as objects in a bucket.

What is removed: the earlier states of a key when a later one is whole; and when a stage opens a store, states that were
written more than `KEPT_DAYS` ago, in a bucket what abandoned TrainJobs left, and in a folder what killed writers left
half written.
"""

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from arnas import artifacts, objects
from arnas.errors import Interrupted, InvalidInput, Unreachable

#: A state that was written longer ago is removed
KEPT_DAYS = 30

#: A digest, as the names of checkpoints are made of: whatever else lies at the place is left alone
KEY = "[0-9a-f]{64}"

#: What a TrainJob and its task hand each other (cluster/trainjob.py)
_HANDED = "arnas-retrain-[0-9a-f]{12}/.+"

#: Seconds between two checkpoints, at most, however long one takes
LONGEST = 300.0

#: Seconds that an outage of the bucket is waited for when the process was asked to stop; Kubernetes kills after 30
LAST_PATIENCE = 10.0


class CheckpointStore:
    """Checkpoints at a place; a reader sees a whole checkpoint or none, whenever the writer is killed.

    A bucket that is away is waited for, as arnas.objects says.

    Args:
        place: A folder, or s3://BUCKET/PREFIX.

    Raises:
        InvalidInput: The place or the environment cannot be used; nothing is tried yet.
        Unreachable: By all methods, where a bucket stays away.
    """

    def __init__(self, place: str | Path):
        #: The process was asked to stop: an outage is waited for shortly only
        self.hurried = False
        self._shelf: _Shelf = (
            _BucketShelf(objects.Bucket(place, self._patience))
            if objects.is_place(place)
            else _FolderShelf(Path(place))
        )

    @classmethod
    def open(cls, place: str | Path) -> Self:
        """The store at a place that was tried, so that work does not start whose state could not be saved.

        Raises:
            InvalidInput: The folder or bucket is missing, or cannot be written.
        """
        store = cls(place)
        store._shelf.open()
        return store

    def save(self, key: str, state: dict[str, Any]) -> None:
        """Replace what is stored under `key`.

        Raises:
            InvalidInput: The place cannot be written, or its disk is full.
        """
        tensors: dict[str, torch.Tensor] = {}
        nest = _pack(state, "", tensors)
        with self._shelf.writing(key) as file:
            try:
                save_file(tensors, file, metadata={"state": json.dumps(nest)})
            except SafetensorError as error:  # a full disk
                raise OSError(str(error)) from error

    def load(self, key: str, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The state last saved under `key`, its tensors on `device`; None if there is none.

        Raises:
            InvalidInput: The stored checkpoint is damaged.
        """
        while True:
            try:
                return self._read(key, device)
            except _Replaced:
                continue

    def _read(self, key: str, device: torch.device | str) -> dict[str, Any] | None:
        with self._shelf.reading(key) as file:
            if file is None:
                return None
            try:
                with safe_open(file, "pt", device=str(device)) as content:
                    nest = json.loads(content.metadata()["state"])
                    tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no dict)
            except (SafetensorError, OSError, ValueError, KeyError) as error:
                raise InvalidInput(f"Checkpoint {file} is damaged ({error}); delete it to begin again.") from None
        return _unpack(nest, tensors)  # type: ignore[no-any-return]

    def _patience(self) -> float:
        return min(objects.patience(), LAST_PATIENCE) if self.hurried else objects.patience()


class _Replaced(Exception):
    """A file was replaced while it was read."""


class _Shelf(Protocol):
    """Where the file of a key is kept."""

    def open(self) -> None:
        """Refuse a place that cannot be used; remove what is old."""

    def writing(self, key: str) -> AbstractContextManager[Path]:
        """A file to write; what the block leaves there becomes the key's file at once, or never."""

    def reading(self, key: str) -> AbstractContextManager[Path | None]:
        """The key's file, if there is one; raises _Replaced at its end where it did not stay the same."""


class _FolderShelf:
    """A file a key, KEY.safetensors; it is written beside its place first."""

    def __init__(self, root: Path):
        self.root = root

    def open(self) -> None:
        artifacts.require_writable(self.root / "checkpoint")
        for entry in self.root.iterdir():
            with suppress(FileNotFoundError):  # of another stage, which has just finished with it
                age = time.time() - entry.stat().st_mtime
                if re.fullmatch(f"{KEY}.safetensors", entry.name) and age > KEPT_DAYS * artifacts.DAY:
                    entry.unlink()
                if re.fullmatch(f".{KEY}.safetensors.*", entry.name) and age > artifacts.DAY:
                    shutil.rmtree(entry, ignore_errors=True)

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        with artifacts.publish(self.root / f"{key}.safetensors") as file:
            yield file
            with file.open("rb") as written:
                os.fsync(written.fileno())

    @contextmanager
    def reading(self, key: str) -> Iterator[Path | None]:
        file = self.root / f"{key}.safetensors"
        before = self._identity(file)
        try:
            yield file if before else None
        finally:  # safetensors opens a file by its name several times: half of it may be of another state
            if self._identity(file) != before:
                raise _Replaced

    @staticmethod
    def _identity(file: Path) -> tuple[int, int] | None:
        try:
            status = file.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


class _BucketShelf:
    """Objects KEY/NUMBER-SHA256, never changed once written; the last name is the state of the key.

    A writer puts its object after the last one that is listed, and removes only what stood before. So the last object
    is whole and stays, whoever else writes or is killed; there is no pointer that could name what is gone. Writers of
    one key agree: all of them, and every reader, take the last.
    """

    def __init__(self, bucket: objects.Bucket):
        self.bucket = bucket

    def open(self) -> None:
        self.bucket.probe()
        handed = {name: entry for name, entry in self.bucket.list().items() if re.fullmatch(_HANDED, name)}
        for name, entry in (self._states() | handed).items():
            if time.time() - entry.modified.timestamp() > KEPT_DAYS * artifacts.DAY:
                self.bucket.remove(name)

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        with _scratch() as file:
            yield file
            digest = artifacts.file_digest(file)
            earlier = list(self._states(key))
            number = int(earlier[-1].removeprefix(f"{key}/").partition("-")[0]) + 1 if earlier else 0
            self.bucket.put(f"{key}/{number:09}-{digest}", file)
        for name in earlier:
            self.bucket.remove(name)

    @contextmanager
    def reading(self, key: str) -> Iterator[Path | None]:
        with _scratch() as file:
            seen = None
            while names := list(self._states(key)):
                digest = names[-1].rpartition("-")[2]
                if self.bucket.get(names[-1], file, digest):
                    break
                if names[-1] == seen:
                    raise InvalidInput(f"{self.bucket.place}/{seen} is listed, but cannot be read; remove it.")
                seen = names[-1]  # a writer has put a later one and removed this: look again
            yield file if names else None

    def _states(self, key: str = "") -> dict[str, objects.Entry]:
        """The states of a key, or of all, in their order; what else lies there is left alone."""
        form = f"{re.escape(key) or KEY}/[0-9]{{9}}-{KEY}"
        found = self.bucket.list(f"{key}/" if key else "")
        return {name: entry for name, entry in found.items() if re.fullmatch(form, name)}


@contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary file's path, for what is on its way to or from a bucket."""
    try:
        with tempfile.TemporaryDirectory(prefix="arnas-") as folder:
            yield Path(folder) / "checkpoint"
    except OSError as error:
        raise InvalidInput(
            f"The temporary folder {tempfile.gettempdir()} cannot be written: {error.strerror or error}; "
            "name one with space and rights in TMPDIR."
        ) from error


class Keeper:
    """Keeps the state of one stage in a store while it works, and saves it when the process is asked to stop.

    Use as a context; call `restore` once, `offer` after every step, `save` at the end. Where it raises Interrupted, the
    sentence has been written to standard error.

    Args:
        store: Where checkpoints live.
        key: Digest of all that determines the result.
        stage: Name for messages.
        interval: Seconds between two checkpoints, at least; ten times what one takes, where that is more, and `LONGEST`
            at most: one that sat out an outage of the store tells nothing of the next.
    """

    def __init__(self, store: CheckpointStore, key: str, stage: str, interval: float = 15.0):
        self.store, self.key, self.stage, self.interval = store, key, stage, interval
        self._pause = interval
        self._signal = 0
        self._handlers: dict[int, Any] = {}
        self._saved = time.monotonic()

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.store.hurried = False
        if self._signal and kind is None:  # it came after the last step
            error = Interrupted(self.stage, self._signal)
        if isinstance(error, Interrupted):
            self._say(error.message)  # here, since in a task of a pipeline nobody else does
        if error and kind is None:
            raise error

    def restore(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The state to go on from, or None to begin."""
        return self.store.load(self.key, device)

    def save(self, state: dict[str, Any]) -> None:
        """Save the state now.

        Raises:
            Unreachable: The bucket stayed away; the work since the last checkpoint is lost.
            Interrupted: It did so after SIGINT or SIGTERM.
        """
        begun = time.monotonic()
        try:
            self.store.save(self.key, state)
        except Unreachable:
            if self._signal:
                raise Interrupted(self.stage, self._signal, saved=False) from None
            raise
        self._saved = time.monotonic()
        self._pause = max(self.interval, min(LONGEST, 10 * (self._saved - begun)))

    def offer(self, capture: Callable[[], dict[str, Any]]) -> None:
        """Save the state if the interval has passed; leave if the process was asked to stop.

        Raises:
            Interrupted: SIGINT or SIGTERM came since the last call.
        """
        if self._signal or time.monotonic() - self._saved >= self._pause:
            self.save(capture())
        if self._signal:
            raise Interrupted(self.stage, self._signal)

    def _say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:  # asked twice: the user does not want to wait for the step
            raise Interrupted(self.stage, number, saved=None)
        self._signal = number
        self.store.hurried = True


def _pack(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Move the tensors of a nest into `tensors`, leaving {"tensor": name} in their place."""
    if isinstance(value, torch.Tensor):
        # one copy, dense and in memory of its own, as safetensors wants it
        tensors[path] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": path}
    if isinstance(value, dict):
        # keys may be integers (optimizer states), which JSON objects do not have
        return {"dict": [[key, _pack(inner, f"{path}/{key}", tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(inner, f"{path}/{index}", tensors) for index, inner in enumerate(value)]}
    return {"value": value}


def _unpack(nest: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    ((form, value),) = nest.items()
    if form == "tensor":
        return tensors[value]
    if form == "dict":
        return {key: _unpack(inner, tensors) for key, inner in value}
    if form == "list":
        return [_unpack(inner, tensors) for inner in value]
    return value
