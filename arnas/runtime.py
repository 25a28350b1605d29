"""What every stage needs of the machine: a device, seeds, progress, versions, memory."""

import hashlib
import importlib.metadata
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO, TypeVar

import torch
from tqdm import tqdm

import arnas
from arnas import artifacts
from arnas.errors import Diverged, InvalidInput

Network = TypeVar("Network", bound=torch.nn.Module)


def device(name: str = "auto") -> torch.device:
    """The device to compute on.

    Args:
        name: auto (CUDA, else mps, else the CPU), cpu, cuda, cuda:N or mps.

    Raises:
        InvalidInput: The device was asked for and is not there.
    """
    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.append("mps")
    if torch.cuda.is_available():
        present += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        name = "cuda" if "cuda" in present else present[-1]
    if name not in present:
        raise InvalidInput(f"device {name!r} is not here; this machine has {', '.join(present)} (or say auto).")
    return torch.device(name)


def prepare(name: str = "auto", gpus: int = 0) -> torch.device:
    """Choose the device and set its arithmetic: true fp32, since TF32 spoils hypergradients and reported robustness.

    Args:
        name: As for `device`.
        gpus: How many GPUs this process was promised; a cluster that keeps its word shows so many.

    Raises:
        InvalidInput: The device is not there, or fewer GPUs are visible than were promised.
    """
    if gpus > torch.cuda.device_count():
        raise InvalidInput(
            f"{gpus} GPU(s) were asked for and {torch.cuda.device_count()} are visible; mend the node's driver, device "
            "plugin or runtime class, or the image (has its PyTorch CUDA or ROCm?), or ask for gpus=0 to use the CPU."
        )
    chosen = device(name)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return chosen


#: How many groups of samples a batch consists of, whose batch norms do not see each other
_groups = 1


@contextmanager
def grouped(groups: int) -> Iterator[None]:
    """Within, the supernet's batch norms take their statistics group by group, of `groups` equal parts of the batch.

    So several batches pass through it as one, and each has the outcome of a pass of its own.
    """
    global _groups
    before, _groups = _groups, groups
    try:
        yield
    finally:
        _groups = before


def groups() -> int:
    """How many groups a batch consists of here."""
    return _groups


def free_memory(chosen: torch.device) -> int:
    """Free memory of a GPU in bytes; elsewhere all memory, from which a mapped file makes way by itself."""
    if chosen.type == "cuda":
        return int(torch.cuda.mem_get_info(chosen)[0])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@contextmanager
def precision(name: str, chosen: torch.device | str = "cpu") -> Iterator[None]:
    """Within, matrix products and convolutions are computed as named; on leaving, also by an exception, as before.

    As a decorator, `@precision("fp32")` says of a function that its figures are true fp32, whatever its caller set.

    Args:
        name: fp32 (true: no TF32, no autocast), tf32 (on CUDA), or bf16 (autocast; weights stay fp32).
        chosen: The device that computes; fp32 is for all.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    kind = torch.device(chosen).type
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = name == "tf32"
    try:
        with ExitStack() as stack:
            for each in {"cpu", "cuda", kind}:
                stack.enter_context(torch.autocast(each, torch.bfloat16, enabled=name == "bf16" and each == kind))
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def require_precision(name: str, chosen: torch.device) -> None:
    """Refuse a precision that the device does not have, where it would be promised and not kept.

    Raises:
        InvalidInput: It is tf32, and the device is no GPU that computes so.
    """
    if name == "tf32" and (chosen.type != "cuda" or torch.cuda.get_device_capability(chosen) < (8, 0)):
        raise InvalidInput(f"precision tf32 is for NVIDIA GPUs from Ampere on, not for {chosen}; choose fp32 or bf16.")


def place(network: Network, chosen: torch.device) -> Network:
    """Bring a network to its device, and into the memory format that is fast there."""
    return network.to(chosen).to(memory_format=memory_format(chosen))


def memory_format(chosen: torch.device) -> torch.memory_format:
    """The memory format of networks on a device.

    channels_last is up to twice as fast on a CPU. On a GPU it is slower in the supernet, and the gradient of torch's
    average pool has been wrong with it.
    """
    return torch.channels_last if chosen.type == "cpu" else torch.contiguous_format


def fast() -> bool:
    """Whether to compute in the fast form and not in the plain one; they differ in rounding only.

    ARNAS_FORM=plain chooses the plain form, as one would write it down from the paper.

    Raises:
        InvalidInput: ARNAS_FORM is neither fast nor plain.
    """
    form = os.environ.get("ARNAS_FORM", "fast")
    if form not in ("fast", "plain"):
        raise InvalidInput(f"ARNAS_FORM is {form!r}; it is fast (as without it) or plain.")
    return form == "fast"


def seed(*parts: int | str) -> None:
    """Seed torch's global generators by a seed and the place of its use, such as (0, "search", epoch, step).

    Random numbers are thereby a function of the place: a resumed run needs no generator state.
    """
    name = "/".join(str(part) for part in parts)
    torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]))


#: Samples of a whole, and those of it that are at hand: this process's part, or what an attack is left to do
_shared: tuple[int, slice | torch.Tensor] | None = None


@contextmanager
def drawing(whole: int, part: slice | torch.Tensor) -> Iterator[None]:
    """Within, `draw` draws for `whole` samples, of which those of `part` (a slice, or indices) are at hand."""
    global _shared
    before, _shared = _shared, (whole, part)
    try:
        yield
    finally:
        _shared = before


def draw(sample: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Random numbers for the samples of a batch, the same whichever others of its whole are in it (see `drawing`).

    Args:
        sample: From an empty tensor to random numbers in its shape, such as torch.randn_like.
        like: A tensor [N, ...] in the shape, type and place that is wanted.
    """
    if _shared is None:
        return sample(like)
    whole, part = _shared
    return sample(like.new_empty((whole, *like.shape[1:])))[part]


def require_finite(figures: Mapping[str, float], stage: str, place: str) -> None:
    """Stop a stage before a figure that is not finite reaches its state; what was saved before stays.

    Args:
        figures: Losses and gradient norms of the step, by name.
        stage, place: For the message, such as "search" and "epoch 3, step 4".

    Raises:
        Diverged: One of them is infinite or not a number.
    """
    for name, value in figures.items():
        if not math.isfinite(value):
            raise Diverged(
                f"{stage}: the {name} became {value} at {place}; the last good checkpoint is kept. "
                "Begin anew with a lower learning rate."
            )


def key(stage: str, chosen: torch.device, packages: Sequence[str], **inputs: Any) -> str:
    """The key of a stage's checkpoints: the digest of all that determines its result.

    Args:
        packages: Our packages that compute the result; work of other code, libraries or kinds of device is not reused.
        inputs: Settings and digests, as JSON values.
    """
    computing = {"code": code_digest(*packages), "versions": versions(), "device": chosen.type}
    return artifacts.digest({"stage": stage} | computing | inputs)


@cache
def code_digest(*packages: str) -> str:
    """Digest of the sources of some of our packages, and of this module."""
    root = Path(arnas.__file__).parent
    total = hashlib.sha256()
    for place in (*sorted(packages), "runtime.py", "graphs.py"):
        for file in sorted((root / place).rglob("*.py")) or [root / place]:
            total.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return total.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what computes."""
    names = ("torch", "torchvision", "numpy", "scikit-learn", "pyautoattack", "torchjd")
    return {"arnas": arnas.__version__, "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in names
    }


class Origin:
    """Where and how an artifact came about: begun when a stage begins, read when it writes."""

    def __init__(self, chosen: torch.device | str = "cpu"):
        self.device = torch.device(chosen)
        self.begun = time.monotonic()

    def report(self) -> dict[str, Any]:
        """Versions, device, seconds since the beginning, peak memory in MiB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        report = {
            "versions": versions(),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device),
            "seconds": round(time.monotonic() - self.begun, 2),
            "peak_memory_mib": round(peak),
        }
        if self.device.type == "cuda":
            report["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**20)
        return report


class Progress:
    """A progress bar with an estimate of the end; whole lines where the output is no terminal."""

    def __init__(self, stage: str, total: int, done: int = 0, unit: str = "step", file: TextIO | None = None):
        file = file or sys.stderr
        live = file.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=unit,
            desc=f"[{stage}]",
            file=file if live else _Lines(file),
            mininterval=0.2 if live else 5.0,
            dynamic_ncols=live,
            ncols=None if live else 110,
            disable=False,
        )

    def advance(self, figures: Mapping[str, float] | None = None, count: int = 1) -> None:
        """Count finished units and show the latest figures."""
        if figures:
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()}, refresh=False)
        self._bar.update(count)

    def close(self) -> None:
        self._bar.close()


class _Lines:
    """A bar redraws itself with carriage returns; in a log each drawing is a line."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> int:
        text = text.strip("\r\n ")
        return self._file.write(text + "\n") if text else 0

    def flush(self) -> None:
        self._file.flush()


def say_resumed(stage: str, done: int, total: int, units: str) -> None:
    """Tell the person who watches what a checkpoint spares them."""
    if done == total:
        say(stage, f"reused: all {total} {units} are done already.")
    elif done:
        say(stage, f"goes on after {done} of {total} {units}.")


def say(stage: str, message: str) -> None:
    """One line to the person who watches."""
    print(f"[{stage}] {message}", file=sys.stderr, flush=True)
