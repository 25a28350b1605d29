"""Checkpoints: the state of unfinished work, under the digest of what determines its result.

A state is a nest of dicts, lists, numbers, strings and tensors; it is stored as one safetensors file whose header
carries the nest as JSON, so nothing is ever unpickled.
"""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from arnas.errors import Interrupted, InvalidInput


class CheckpointStore:
    """Checkpoints in a directory; a reader sees a whole checkpoint or none, whenever the writer is killed."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def save(self, key: str, state: dict[str, Any]) -> None:
        """Replace what is stored under `key`.

        Raises:
            InvalidInput: The directory cannot be written, or its disk is full.
        """
        tensors: dict[str, torch.Tensor] = {}
        nest = _pack(state, "", tensors)
        data = save(tensors, metadata={"state": json.dumps(nest)})
        scratch = None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.root, prefix=".", suffix=".part", delete=False) as file:
                scratch = file.name
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self._path(key))
        except OSError as error:
            if scratch is not None:
                Path(scratch).unlink(missing_ok=True)
            raise InvalidInput(
                f"Checkpoint folder {self.root} cannot be written: {error.strerror}; name one with space and rights."
            ) from error

    def load(self, key: str, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The state last saved under `key`, its tensors on `device`; None if there is none.

        Raises:
            InvalidInput: The stored checkpoint is damaged.
        """
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                nest = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise InvalidInput(f"Checkpoint {path} is damaged ({error}); delete it to begin again.") from None
        return _unpack(nest, tensors)  # type: ignore[no-any-return]

    def _path(self, key: str) -> Path:
        return self.root / f"{key}.safetensors"


class Keeper:
    """Keeps the state of one stage in a store while it works, and saves it when the process is asked to stop.

    Use as a context; call `restore` once, `offer` after every step, `save` at the end.

    Args:
        store: Where checkpoints live.
        key: Digest of all that determines the result.
        stage: Name for messages.
        interval: Seconds between two checkpoints.
    """

    def __init__(self, store: CheckpointStore, key: str, stage: str, interval: float = 15.0):
        self.store, self.key, self.stage, self.interval = store, key, stage, interval
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
        if self._signal and kind is None:  # it came after the last step
            raise Interrupted(self.stage, self._signal)

    def restore(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The state to go on from, or None to begin."""
        return self.store.load(self.key, device)

    def save(self, state: dict[str, Any]) -> None:
        """Save the state now."""
        self.store.save(self.key, state)
        self._saved = time.monotonic()

    def offer(self, capture: Callable[[], dict[str, Any]]) -> None:
        """Save the state if the interval has passed; leave if the process was asked to stop.

        Raises:
            Interrupted: SIGINT or SIGTERM came since the last call.
        """
        if self._signal or time.monotonic() - self._saved >= self.interval:
            self.save(capture())
        if self._signal:
            raise Interrupted(self.stage, self._signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:  # asked twice: the user does not want to wait for the step
            raise Interrupted(self.stage, number)
        self._signal = number


def _pack(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Move the tensors of a nest into `tensors`, leaving {"tensor": name} in their place."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
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
