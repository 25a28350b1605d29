"""A device proves itself before it is believed: its gradients are those of float64 on the CPU, or nothing runs there.

An attack that climbs a wrong gradient overstates robustness, and a search that descends one finds chance; both look
like results. The average pool of torch has had such a gradient on CUDA, in channels_last.
"""

import copy
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from arnas import artifacts, runtime
from arnas.errors import InvalidInput
from arnas.search.hypergradient import VirtualStep, hypergradients
from arnas.space.layout import KINDS, NODES, Layout
from arnas.space.network import build
from arnas.space.operations import OPERATIONS
from arnas.space.supernet import Supernet

#: Relative error of a gradient: fp32 rounding leaves some 1e-6 here, TF32 some 1e-3, and a wrong one 0.1 and more
TOLERANCE = 1e-4

#: A name, a network, and what is compared of it
Case = tuple[str, nn.Module, Callable[[Any, Tensor], Sequence[Tensor]]]

_proved: set[str] = set()


@runtime.precision("fp32")  # whatever its caller set
def prove(device: torch.device) -> None:
    """Compare a device's gradients with those of float64 on the CPU, on its first use with this torch and this code.

    A second or two, in true fp32 and in the memory format of our networks there. What was proved is remembered in the
    user's cache folder ($XDG_CACHE_HOME or ~/.cache), if that can be written. Random generators stay as they are.

    Raises:
        InvalidInput: A gradient is wrong beyond rounding; the operation, the device and torch are named.
    """
    subject = _subject(device)
    name = artifacts.digest(subject)
    if name in _proved or _remembered(name):
        _proved.add(name)
        return
    begun = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the device's generator too
        worst = max(_error(case, device, subject) for case in _cases())
    seconds = time.monotonic() - begun
    where = f"{subject['device']}, torch {subject['torch']}"
    runtime.say("proof", f"{where}: gradients are those of float64 but for {worst:.0e} ({seconds:.1f} s).")
    _proved.add(name)
    _remember(name, subject)


def _subject(device: torch.device) -> dict[str, Any]:
    """All that a proof holds for."""
    match device.type:
        case "cuda":
            name = torch.cuda.get_device_name(device)
        case "cpu":
            name = f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
        case other:
            name = other
    return {
        "device": name,
        "dtype": "float32",
        "memory_format": str(runtime.memory_format(device)),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "form": "fast" if runtime.fast() else "plain",
        "code": runtime.code_digest("kernels", "space", "search", "proof.py"),
    }


def _cases() -> Iterator[Case]:
    """Every operation in both its forms, then small networks of them all, as attacked and as searched."""
    for (name, make), stride, affine in product(OPERATIONS.items(), (1, 2), (True, False)):
        network = make(4, stride, affine)
        if affine:
            yield f"{name} of stride {stride} as evaluated", _as_trained(network), _gradients
        else:
            yield f"{name} of stride {stride} in the supernet", network, _gradients
    edges = [[name, index % 2] for index, name in enumerate([*OPERATIONS, "skip_connect"])]
    cells = {kind: [edges[2 * node : 2 * node + 2] for node in range(NODES)] for kind in KINDS.values()}
    sizes = {"channels": 2, "classes": 3, "channels_in": 4, "auxiliary": False, "drop_path": 0.0}
    derived = build({"architecture": "genotype", "cells": cells, "layout": "D1 A1"} | sizes)
    yield "a derived network", _as_trained(derived), _gradients
    supernet = Supernet(Layout.parse("D1"), channels=2, classes=3, channels_in=4)
    yield "a supernet", supernet, _gradients
    yield "the hypergradient of a supernet", supernet, _hypergradient


def _as_trained(network: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics such as training leaves."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.uniform_(-0.1, 0.1)
        if name.endswith("running_var"):
            tensor.uniform_(0.1, 0.3)
    return network.eval()


def _error(case: Case, device: torch.device, subject: dict[str, Any]) -> float:
    """The largest relative error of the gradients of one case."""
    name, network, gradients = case
    images = _images()
    expected = gradients(copy.deepcopy(network).double(), images.double())
    placed = images.to(device).to(memory_format=runtime.memory_format(device))
    found = gradients(runtime.place(copy.deepcopy(network), device), placed)
    worst = 0.0
    for mine, right in zip(found, expected, strict=True):
        scale = right.norm().item() or 1.0  # 0 has no relative error
        error = (mine.cpu().double() - right).norm().item() / scale
        if not error <= TOLERANCE:  # also where it is not a number
            elsewhere = "" if device.type == "cpu" else ", or the device cpu"
            raise InvalidInput(
                f"{name} has a wrong gradient on {subject['device']} with torch {subject['torch']}: its relative error "
                f"against float64 is {error:.0e}, where rounding stays below {TOLERANCE:.0e}; use another version of "
                f"torch{elsewhere}."
            )
        worst = max(worst, error)
    return worst


def _images() -> Tensor:
    """[4, 4, 9, 9] in (-1/2, 1/2): all values differ and none is near 0, so rounding moves no kink of ReLU or pool."""
    shape = (4, 4, 9, 9)
    count = torch.Size(shape).numel()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    return ((order + 0.5) / count - 0.5).reshape(shape)


def _gradients(network: nn.Module, images: Tensor) -> Sequence[Tensor]:
    """Of some function of the output: by the pixels; and by all parameters, as one vector.

    As one, since that of a single weight before a batch norm may be next to zero, and its relative error anything.
    """
    images = images.clone().requires_grad_()
    output: Tensor = network(images)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)
    wanted = [images, *network.parameters()]
    pixels, *parameters = torch.autograd.grad(output, wanted, direction, materialize_grads=True)
    return pixels, torch.cat([pixels.new_zeros(0), *(gradient.reshape(-1) for gradient in parameters)])


def _hypergradient(supernet: Supernet, images: Tensor) -> Sequence[Tensor]:
    """In its exact form: the finite differences of the published one are no more exact than TF32."""
    labels = torch.arange(len(images), device=images.device) % 3
    weights, architecture = supernet.weights(), list(supernet.architecture.values())
    found, _ = hypergradients(
        [lambda: functional.cross_entropy(supernet(images.flip(3)), labels)],
        lambda: functional.cross_entropy(supernet(images), labels),
        weights,
        architecture,
        VirtualStep(0.1, 0.9, 3e-4, [torch.zeros_like(weight) for weight in weights]),
        method="exact",
    )
    return found


def _file(name: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "arnas" / "proofs" / f"{name}.json"


def _remembered(name: str) -> bool:
    try:
        return _file(name).is_file()
    except (OSError, RuntimeError):  # a folder that may not be read, or a user without a home
        return False


def _remember(name: str, subject: dict[str, Any]) -> None:
    with suppress(InvalidInput, RuntimeError):  # a root that is read-only, or no home: the next process proves it again
        artifacts.write_text(_file(name), json.dumps(subject, indent=1))
