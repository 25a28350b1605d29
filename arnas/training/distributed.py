"""Training in several processes, one a GPU, as if in one: PyTorch's DistributedDataParallel under torchrun.

Every process holds the whole network and takes its share of each batch. What is random is drawn for the whole batch and
cut to the share, batch norm sees the whole batch, and gradients and figures are those of the whole batch: but for
rounding, the result does not depend on the number of processes. Without torchrun there is one, and nothing is shared.
"""

import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from arnas import objects, runtime
from arnas.checkpoints import Keeper
from arnas.errors import Diverged, Interrupted, InvalidInput, ProcessLost, Unreachable

Result = TypeVar("Result")

#: Seconds that a process waits for the others, at least
PATIENCE = 1800.0


def launch(stage: str, processes: int, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in several processes, as torchrun does; they meet in `joined`.

    Where torchrun's variables PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT are set, as Kubeflow
    Trainer does, the processes of all those nodes meet; otherwise those of this machine do.

    Args:
        stage: Name for messages.
        processes: How many on this machine.
        function: It and its arguments are sent to the processes.

    Returns:
        What the first process of this machine returns.

    Raises:
        InvalidInput, Diverged, Unreachable, Interrupted: A process raised it, and the others were stopped.
        ProcessLost: A process was killed, and the others were stopped.
    """
    # takes a while to import, and is needed here alone
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, get_args_parser

    alone = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--rdzv-id=arnas", "--local-addr=localhost"]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    told = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // processes))  # torchrun would make it 1
    logging.disable(logging.ERROR)  # the launcher's account of what is raised below
    try:
        with tempfile.TemporaryDirectory() as folder:
            words = alone if nodes() == 1 else []
            words += [f"--nproc-per-node={processes}", "--max-restarts=0", f"--log-dir={folder}", "a function"]
            config, _, _ = config_from_args(get_args_parser().parse_args(words))
            config.signals_to_handle = ",".join(number.name for number in handlers)
            returned = elastic_launch(config, _call)(function, arguments)
            return returned[min(returned)]  # type: ignore[no-any-return]
    except SignalException as error:
        raise Interrupted(stage, error.sigval, saved=None) from None
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode > 128:
            raise Interrupted(stage, failure.exitcode - 128, saved=None) from None
        if failure.exitcode < 0:
            raise ProcessLost(stage, number, processes * nodes(), failure.signal_name()) from None
        said = failure.error_file_data["message"]  # a dictionary, if the process lived to write it
        kind, _, sentence = said["message"].partition(": ") if isinstance(said, dict) else ("", "", "")
        for known in (InvalidInput, Diverged, Unreachable):
            if kind == known.__name__:
                raise known(sentence) from None
        raise
    finally:
        logging.disable(logging.NOTSET)
        os.environ.pop("OMP_NUM_THREADS")
        os.environ.update({"OMP_NUM_THREADS": told} if told else {})
        for number, handler in handlers.items():
            signal.signal(number, handler)


def nodes() -> int:
    """Machines that train together, as torchrun's environment says."""
    return int(os.environ.get("PET_NNODES", "1"))


def _call(function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
    return function(*arguments)


def launched() -> bool:
    """Whether torchrun started this process, as one of several or alone."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes, if torchrun started this one; yields the device of this process.

    Only the first process is heard: what the others say while they work is what it says.

    Args:
        device: Of a kind that all share; of GPUs, each process takes the one of its number on its machine.
    """
    if not launched():
        yield device
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        runtime.prepare(f"cuda:{local}", int(os.environ["LOCAL_WORLD_SIZE"]))
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    timeout = max(PATIENCE, objects.patience() + 600)  # one of them may be sitting out an outage of the store
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout))
    try:
        with ExitStack() as stack:
            if rank():
                stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
            yield device
    except RuntimeError as error:
        if not isinstance(error, Diverged):
            time.sleep(5)  # if it is that another process is gone, the launcher shall see that one first
        raise
    finally:
        distributed.destroy_process_group()


def size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextmanager
def share(count: int) -> Iterator[slice]:
    """This process's part of a batch of `count` samples; what is drawn meanwhile is as if drawn for all of it.

    Parts differ by one sample at most; where there are more processes than samples, some are empty.
    """
    part = slice(count * rank() // size(), count * (rank() + 1) // size())
    if size() == 1:
        yield part
    else:
        with runtime.drawing(count, part):
            yield part


def total(values: Tensor) -> Tensor:
    """Sum over the processes, in place."""
    if size() > 1:
        distributed.all_reduce(values)
    return values


def totals(*figures: float) -> list[float]:
    """Sums over the processes, in double precision."""
    return _agreed(distributed.ReduceOp.SUM, figures)


def require_same(figure: int, sentence: str) -> None:
    """Stop all processes if a figure differs among them.

    Raises:
        InvalidInput: With the sentence.
    """
    highest, lowest = _agreed(distributed.ReduceOp.MAX, (figure, -figure))
    if highest != -lowest:
        raise InvalidInput(sentence)


def _agreed(operation: Any, figures: tuple[float, ...]) -> list[float]:
    if size() == 1:
        return list(figures)
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    values = torch.tensor(figures, dtype=torch.float64, device=device)
    distributed.all_reduce(values, operation)
    return values.tolist()


def parallel(objective: nn.Module) -> nn.Module:
    """The module whose backward pass averages the gradients of the processes, and whose batch norm sees all batches."""
    if size() == 1:
        return objective
    for module in objective.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = BatchNorm
    return DistributedDataParallel(objective, static_graph=True)  # a static graph may leave parameters unused


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes; torch's SyncBatchNorm is for GPUs only."""

    fusible = False  # kernels take the statistics of what they see
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        images = images.to(self.weight.dtype)  # of bf16 the sums would be too coarse
        with torch.no_grad():
            sums = total(torch.cat([images.sum((0, 2, 3)), images.new_full((1,), images[:, 0].numel())]))
            mean, count = sums[:-1] / sums[-1], sums[-1]
            variance = total((images - mean[:, None, None]).square().sum((0, 2, 3))) / count
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        return _Normalized.apply(  # type: ignore[no-any-return]
            images, self.weight, self.bias, mean, (variance + self.eps).rsqrt(), count
        )


class _Normalized(torch.autograd.Function):
    """Images [B, C, H, W] normalised by statistics [C] that come from the images of all processes."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, count: Tensor
    ) -> Tensor:
        normal = (images - mean[:, None, None]) * scale[:, None, None]
        ctx.save_for_backward(normal, weight, scale, count)
        return normal * weight[:, None, None] + bias[:, None, None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, scale, count = ctx.saved_tensors
        of_weight, of_bias = (gradient * normal).sum((0, 2, 3)), gradient.sum((0, 2, 3))
        along, constant = total(torch.stack([of_weight, of_bias])) / count
        # what moves the mean or the scale of all images does not reach the output
        inner = gradient - constant[:, None, None] - normal * along[:, None, None]
        return inner * (weight * scale)[:, None, None], of_weight, of_bias, None, None, None


class SharedKeeper(Keeper):
    """A keeper for processes that work together: the first one saves, and when one is asked to stop, all do."""

    _asked = 0  # the signal that this process got; it counts from the next time on that all agree

    def save(self, state: dict[str, Any]) -> None:
        if rank() == 0:
            super().save(state)

    def offer(self, capture: Callable[[], dict[str, Any]]) -> None:
        self._agree()
        try:
            super().offer(capture)
        except Interrupted:
            self._agree()  # nobody leaves before the state is saved: the launcher would stop the one that saves
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._agree()
        super().__exit__(kind, error, trace)

    def _say(self, message: str) -> None:
        if rank() == 0:
            super()._say(message)

    def _agree(self) -> None:
        if size() > 1:
            self._signal = int(_agreed(distributed.ReduceOp.MAX, (self._asked,))[0])

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if size() > 1:
            self._asked = number  # once more is an echo: a terminal signals every process, and so does the launcher
            self.store.hurried = True
        else:
            super()._on_signal(number, frame)
