"""CUDA graphs: a pass through a network, some thousand kernels, recorded once and launched as one.

`Graphed` wraps a model. What is done with its logits, a loss, an attack of ours or of a library, an optimizer, is
written as ever and needs no change: forward and backward pass are replayed where they would have been computed.

A replay computes at the places in memory where the pass was recorded. Inputs are copied in, outputs and gradients are
copied out; parameters and buffers are read and written where they lie, so they must change in place. All recordings
share memory: a backward pass must come before the next forward pass of any of them, and is refused otherwise.

What was recorded is believed after its first replay, which is compared with the pass itself. Where recording is
impossible, one line says why, and the pass is computed as without graphs.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from arnas import runtime

Function = Callable[..., Tensor | tuple[Tensor, ...]]

#: A pass is recorded, which costs some six of it, when it comes for this time
RECURRENCE = 3
#: Kinds of passes remembered, of a model; the one used longest ago is forgotten
LIMIT = 8


class Graphed(nn.Module):
    """A model [N, ...] to [N, K] whose passes are replayed; hooks upon it are called at every pass."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._replayed = Replayed(model)

    def forward(self, images: Tensor) -> Tensor:
        return self._replayed(images)  # type: ignore[no-any-return]


class Replayed:
    """A function of tensors that is replayed on a GPU, and called elsewhere.

    It can be differentiated once, with respect to its arguments and the module's parameters.

    Args:
        module: What the function computes with. Its modules and tensors are those of the first call.
        function: From tensors to a tensor or a tuple of tensors; the module itself by default.
    """

    def __init__(self, module: nn.Module, function: Function | None = None):
        self._module, self._function = module, function or module
        self._passes: dict[Any, int | _Pass | None] = {}  # times seen; or recorded; or None, impossible

    def __call__(self, *inputs: Tensor) -> Any:
        if not _wanted(inputs[0].device):
            return self._function(*inputs)
        kind = self._kind(inputs)
        known = self._passes.pop(kind, 0)
        if isinstance(known, int):
            known = known + 1 if known + 1 < RECURRENCE else _proven(self._module, self._function, inputs)
        self._passes[kind] = known  # the latest stands last
        if len(self._passes) > LIMIT:
            del self._passes[next(iter(self._passes))]
        return known(inputs) if isinstance(known, _Pass) else self._function(*inputs)

    def _kind(self, inputs: Sequence[Tensor]) -> Any:
        """All that a recording is made for."""
        return (
            tuple((x.shape, x.stride(), x.dtype, x.device, x.requires_grad) for x in inputs),
            torch.is_grad_enabled(),
            runtime.groups(),
            (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
            (torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")),
            bytes(module.training for module in self._modules),
            tuple((tensor.data_ptr(), tensor.requires_grad) for tensor in self._tensors),
        )

    @functools.cached_property
    def _modules(self) -> list[nn.Module]:
        return list(self._module.modules())

    @functools.cached_property
    def _tensors(self) -> list[Tensor]:
        return [*self._module.parameters(), *self._module.buffers()]


class _Pass:
    """A pass from fixed places to fixed places: computed at first, replayed once it is recorded."""

    _latest: object = None  # the last forward pass, of all recordings

    def __init__(self, module: nn.Module, function: Function, inputs: Sequence[Tensor]):
        differentiable = torch.is_grad_enabled()
        self.parameters = [p for p in module.parameters() if p.requires_grad] if differentiable else []
        self.inputs = [x.detach().clone().requires_grad_(x.requires_grad and differentiable) for x in inputs]
        self.leaves = [x for x in (*self.inputs, *self.parameters) if x.requires_grad]
        self._function = function
        self._outputs: tuple[Tensor, ...] = ()
        self._gradients: list[Tensor] = []  # of the outputs
        self._forward, self._backward = self._compute, self._differentiate

    def record(self) -> None:
        """Record both passes; the next call replays them."""
        device = self.inputs[0].device
        self._forward = _recorded(self._compute, device)
        if self.leaves:
            self._backward = _recorded(self._differentiate, device)
            if device.type == "cuda":
                self._outputs = ()  # frees the intermediate results for other recordings

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        found = _Replay.apply(self, *inputs, *self.parameters) if self.leaves else self.forward(inputs)
        return found if self.several else found[0]

    @torch.no_grad()
    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        _Pass._latest = self.turn = object()
        for place, x in zip(self.inputs, inputs, strict=True):
            place.copy_(x)
        return tuple(_copies(self._forward()))

    @torch.no_grad()
    def backward(self, turn: object, gradients: Sequence[Tensor]) -> Iterator[Tensor | None]:
        if turn is not _Pass._latest:
            raise RuntimeError("the pass to go back through has been overwritten; go back before the next pass")
        torch._foreach_copy_(self._gradients, list(gradients))
        found = self._backward()
        copies = iter(_copies([g for g in found if g is not None]))
        return (None if g is None else next(copies) for g in found)

    def _compute(self) -> list[Tensor]:
        with torch.set_grad_enabled(bool(self.leaves)):
            found = self._function(*self.inputs)
        self.several = isinstance(found, tuple)
        self._outputs = found if isinstance(found, tuple) else (found,)
        if not self._gradients:
            self._gradients = [torch.zeros_like(output) for output in self._outputs]
        return [output.detach() for output in self._outputs]

    def _differentiate(self) -> list[Tensor | None]:
        # the graph is kept, since one may go back through it several times
        found = torch.autograd.grad(self._outputs, self.leaves, self._gradients, retain_graph=True, allow_unused=True)
        return list(found)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recorded: _Pass, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = recorded.forward(tensors[: len(recorded.inputs)])
        ctx.recorded, ctx.turn = recorded, recorded.turn
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.recorded.backward(ctx.turn, gradients)
        return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)


def _proven(module: nn.Module, function: Function, inputs: Sequence[Tensor]) -> _Pass | None:
    """A recorded pass whose first replay gave what the pass gives, or None, and a line that says why.

    Buffers and random numbers are afterwards as they were.
    """
    device, buffers = inputs[0].device, list(module.buffers())
    try:
        candidate = _Pass(module, function, inputs)
        for _ in range(2):  # libraries choose their algorithms, Triton compiles
            with _restored(buffers, device), _beside(device):
                _results(candidate, inputs, buffers)
        with _restored(buffers, device):
            expected = _results(candidate, inputs, buffers)
        with _restored(buffers, device):
            candidate.record()
        with _restored(buffers, device):
            found = _results(candidate, inputs, buffers)
    except RuntimeError as error:
        _say_once(f"a pass cannot be recorded and is computed as ever ({str(error).strip().splitlines()[0]}).")
        return None
    for one, other in zip(found, expected, strict=True):
        scale = torch.linalg.vector_norm(other).item()
        allowed = torch.finfo(inputs[0].dtype).eps ** 0.5 * scale  # atomic additions come in any order
        if not torch.linalg.vector_norm(one - other).item() <= allowed:
            _say_once("a replay differed from the pass that it records, which is computed as ever.")
            return None
    return candidate


def _results(candidate: _Pass, inputs: Sequence[Tensor], buffers: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, gradients of the inputs and parameters for some gradient of the outputs, and buffers: a vector each."""
    outputs = candidate.forward(inputs)
    gradients = candidate.backward(candidate.turn, outputs) if candidate.leaves else iter(())
    groups = (outputs, [g for g in gradients if g is not None], [b.detach() for b in buffers])
    return [torch.cat([t.reshape(-1).double() for t in group]) for group in groups if group]


@contextmanager
def _restored(buffers: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Buffers and random numbers are afterwards as they were."""
    before = [buffer.detach().clone() for buffer in buffers]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def _wanted(device: torch.device) -> bool:
    """Whether passes on this device are replayed."""
    if device.type != "cuda" or not runtime.fast():
        return False
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _say_once("not used, since several processes train together.")
        return False
    return True


_alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()  # their memory is shared


def _recorded(function: Callable[[], list[Any]], device: torch.device) -> Callable[[], list[Any]]:
    """Record what the function launches, without running it; returns what runs it, at the same places."""
    graph = torch.cuda.CUDAGraph()
    pool = next((other.pool() for other in _alive), None)
    recording = torch.cuda.graph(
        graph,
        pool=pool,
        stream=_side(device),
        capture_error_mode="thread_local",  # other threads, which read data, may go on
    )
    with torch.cuda.device(device), recording:
        results = function()
    _alive.add(graph)

    def replay() -> list[Any]:
        with torch.cuda.device(device):
            graph.replay()
        return results

    return replay


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Within, work goes to the stream on which passes are recorded."""
    if device.type != "cuda":
        yield
        return
    side, current = _side(device), torch.cuda.current_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


@functools.cache
def _side(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    copies = [torch.empty_like(tensor) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies


@functools.cache
def _say_once(message: str) -> None:
    runtime.say("CUDA graphs", message)
