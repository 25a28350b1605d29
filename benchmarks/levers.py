"""What each lever gives: how much longer our steps take without it. `python -m benchmarks.levers`.

Of all that makes our form fast one lever at a time is taken away, and the others stay. The step is first shown to lead
to the same without it, in float64, at a small size; then it runs with and without it in turn, in this process. Written
are results/levers-DEVICE.json, after every lever anew, and the page; about twelve minutes on two cores.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from arnas.attacks import frozen
from arnas.search.hypergradient import hypergradients
from benchmarks import page
from benchmarks.__main__ import (
    ROOT,
    ROUNDING,
    Step,
    about,
    devices,
    file_name,
    pairs,
    parser_of,
    reason,
    say,
    size,
    spread,
    warm,
    write,
)
from benchmarks.cases import CASES, KINDS, SMALL, Case, batches, begin

#: What is measured, the first case of each; two attacks pass through the same network, and a CPU has time for one
MEASURED = {"cpu": ("search", "retrain", "attack"), "cuda": tuple(KINDS)}
SECONDS = {"cpu": 0.0, "cuda": 5.0}  # for the pairs of a lever in a case, which asks for some at least


@contextmanager
def unfrozen(model: nn.Module) -> Iterator[None]:
    """In the place of `frozen`: with the gradient of the pixels come those of all parameters, as by `backward()`."""
    grad, parameters = torch.autograd.grad, list(model.parameters())

    def of_all(outputs: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        if not isinstance(inputs, Tensor):  # not the attack's: it asks for the pixels alone
            return grad(outputs, inputs, *rest, **options)
        return grad(outputs, [inputs, *parameters], *rest, **options, allow_unused=True)[:1]

    with frozen(model), mock.patch("torch.autograd.grad", of_all):
        model.requires_grad_(True)
        yield


def one_by_one(objectives: Any, *rest: Any) -> tuple[list[Tensor], list[float]]:
    """In the place of `hypergradients`: a virtual step for each objective."""
    found = [hypergradients([objective], *rest) for objective in objectives]
    return [gradient for [gradient], _ in found], [value for _, [value] in found]


@dataclass(frozen=True)
class Lever:
    """Something that makes our form fast.

    Args:
        kinds: Of `KINDS`, those that it matters for.
        devices: Types of devices that it matters on.
        off: What takes it away: place in `arnas` -> what stands there instead.
    """

    kinds: tuple[str, ...]
    devices: tuple[str, ...]
    off: dict[str, Any]


EVERY, ATTACKED, BOTH = tuple(KINDS), ("retrain", "attack", "autoattack"), ("cpu", "cuda")
LEVERS = {
    "the two attacks as one": Lever(
        ("search",),
        BOTH,
        {"arnas.search.joint.JointAttack.__call__": lambda attack, model, *batches: attack._apart(model, batches)},
    ),
    # AutoAttack's library asks for no other gradients anyway
    "attacks: gradients of the pixels only": Lever(
        ("search", "retrain", "attack"), BOTH, {"arnas.attacks.pgd.frozen": unfrozen}
    ),
    # no network is of the class that is folded
    "attacks: batch norms folded into convolutions": Lever(ATTACKED, BOTH, {"arnas.space.folding.Classifier": ()}),
    "all edges of a source at once": Lever(
        ("search",),
        BOTH,
        {"arnas.space.supernet._SuperCell._by_source": lambda cell, *given: cell._by_node(*given)},
    ),
    "one virtual step for both objectives": Lever(("search",), BOTH, {"arnas.search.loop.hypergradients": one_by_one}),
    "finite differences: no gradients of the weights": Lever(
        ("search",), BOTH, {"arnas.search.hypergradient._constant": nullcontext}
    ),
    "channels_last": Lever(EVERY, ("cpu",), {"arnas.runtime.memory_format": lambda _: torch.contiguous_format}),
    "back through convolutions: turned kernels": Lever(
        EVERY, ("cpu",), {"arnas.space.gradients._turns": lambda *_: False}
    ),
    "back through stacks: dense gradients": Lever(
        ("search",), ("cpu",), {"arnas.space.stacked._with_gradient_alike": lambda x: x}
    ),
    "CUDA graphs": Lever(EVERY, ("cuda",), {"arnas.graphs._wanted": lambda _: False}),
    "Triton kernels": Lever(EVERY, ("cuda",), {"arnas.kernels.usable": lambda *_: False}),
}


@contextmanager
def without(lever: Lever) -> Iterator[None]:
    """Within, steps are built and taken without it."""
    with ExitStack() as stack:
        for place, instead in lever.off.items():
            stack.enter_context(mock.patch(place, instead))
        yield


def main(arguments: list[str] | None = None) -> int:
    """Measure the levers of the devices that the command line asks for; returns the exit status, 1 if one failed."""
    told = parser_of("python -m benchmarks.levers", __doc__).parse_args(arguments)
    output, failed = told.output or ROOT / ("out/benchmarks" if told.small else "benchmarks"), False
    for device in devices(told.device):
        path = output / "results" / f"levers-{file_name(device)}"
        cases = [next(case for case in CASES[device.type] if case.kind == kind) for kind in MEASURED[device.type]]
        result = run(SMALL, device, 0, path) if told.small else run(cases, device, SECONDS[device.type], path)
        failed |= any("failed" in figures for figures in result["levers"])
        print(f"{path} has the figures.")
    page.write(output)
    print(f"{output / 'README.md'} shows the results.")
    return int(failed)


def run(cases: Sequence[Case], device: torch.device, seconds: float, path: Path) -> dict:
    """Measure each lever in each case, in about `seconds`, and keep every figure in the file at once; returns them."""
    found: list[dict] = []
    result = about(device) | {"levers": found}
    path.parent.mkdir(parents=True, exist_ok=True)
    for case in cases:
        say(f"{case}, on {device}, without")
        expected = outcome(case.kind, device)
        for name, lever in LEVERS.items():
            if case.kind not in lever.kinds or device.type not in lever.devices:
                continue
            found.append({"lever": name} | size(case))
            try:
                found[-1] |= measure(lever, case, device, seconds, expected)
                say(f"  {name}: {found[-1]['ratio']['median']:.2f}x as long")
            except Exception as error:  # whatever it is, the other levers can still be measured
                found[-1]["failed"] = reason(error)
                say(f"  {name}: failed: {found[-1]['failed']}")
            write(path, result)
    return result


def measure(lever: Lever, case: Case, device: torch.device, seconds: float, expected: list[Tensor]) -> dict:
    """The figures of a lever in a case.

    Raises:
        ValueError: Without it the outcome is not the expected; it is not timed.
    """
    with without(lever):
        found = outcome(case.kind, device)
    difference = max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))
    if not difference <= ROUNDING:
        raise ValueError(f"without it the float64 outcome differs by {difference:.1e}, and that is not by rounding")
    forms = {"with": ready(case, device)}
    with without(lever):
        forms["without"] = without(lever)(ready(case, device))
    taken = list(pairs(case, forms, device, seconds))
    sides = {name: {"seconds": spread([pair[name] for pair in taken])} for name in forms}
    ratio = spread([pair["without"] / pair["with"] for pair in taken])
    return {"float64_difference": difference} | sides | {"ratio": ratio}


def outcome(kind: str, device: torch.device) -> list[Tensor]:
    """What two steps in float64 at the small size lead to."""
    case = next(case for case in SMALL if case.kind == kind)
    form = begin("ours", case, device, torch.float64)
    for number in range(2):
        torch.manual_seed(number)
        form.step(*batches(case, device, torch.float64))
    return form.outcome()


def ready(case: Case, device: torch.device) -> Step:
    """Our step, warm; on a GPU attacks are joined, and their passes recorded, in the second."""
    step, _ = warm("ours", case, device)
    if device.type == "cuda":
        step()
    return step


if __name__ == "__main__":
    sys.exit(main())
