"""How much faster our steps are than their published form, on this machine: `python -m benchmarks`.

For each case both forms are first shown to be equal in float64, at a small size; then they run in turn, in this
process, in float32. Written are results/DEVICE.json, after every case anew, and from all that lie there README.md with
its chart.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import torch

from arnas import kernels, proof, runtime
from benchmarks import bandwidths, gpu, page
from benchmarks.cases import CASES, KINDS, SMALL, Case, batches, begin, compare, plainly

ROOT = Path(__file__).parents[1]
Step = Callable[[], object]
FORMS = ("published", "ours")
#: Largest difference of float64 outcomes that is rounding
ROUNDING = 1e-9
SECONDS = {"cuda": 120, "cpu": 400}  # to spend on the pairs of a device
DEADLINE = 540.0  # seconds after which no case begins

#: What a fresh process does, and is timed at
START_UP = {
    "import arnas": "import arnas",
    "arnas --help": "from arnas.cli import main; main(['--help'])",
    "first search step, tiny": (
        "import torch\nfrom arnas import runtime\nfrom benchmarks.cases import SMALL, batches, begin\n"
        "device = runtime.prepare('{device}')\n"
        "begin('ours', SMALL[0], device).step(*batches(SMALL[0], device, torch.float32))"
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for; returns the exit status, 1 if a case failed."""
    parser = parser_of("python -m benchmarks", __doc__)
    things = [*KINDS, "kernels", "start-up"]
    parser.add_argument("--only", nargs="+", choices=things, default=things, help="what to measure (all of it)")
    parser.add_argument("--page", action="store_true", help="write the page anew and measure nothing")
    told = parser.parse_args(arguments)
    output = told.output or ROOT / ("out/benchmarks" if told.small else "benchmarks")
    failed, until = False, time.monotonic() + DEADLINE
    if not told.page:
        for device in devices(told.device):
            cases = [case for case in (SMALL if told.small else CASES[device.type]) if case.kind in told.only]
            path = output / "results" / file_name(device)
            seconds = 0 if told.small else min(SECONDS[device.type], until - time.monotonic())
            if cases or not path.exists():
                result = run(cases, device, seconds, until, path)
            else:  # what is measured now is added
                result = json.loads(path.read_text(encoding="utf-8"))
            failed |= any("failed" in case for case in result["cases"])
            if "kernels" in told.only and not told.small:
                result |= shares(device)
                write(path, result)
            if "start-up" in told.only:
                write(path, result | {"start_up": start_up(device, 1 if told.small else 3)})
            print(f"{path} has the figures.")
    page.write(output)
    print(f"{output / 'README.md'} shows the results.")
    return int(failed)


def parser_of(program: str, description: str | None) -> argparse.ArgumentParser:
    """What the command lines of the benchmarks have in common."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:N, or auto: a GPU if there is one, and the CPU"
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, to see that all works; goes to out/benchmarks"
    )
    parser.add_argument("--output", type=Path, help="folder of results/ and the page (default: benchmarks)")
    return parser


def devices(name: str) -> Iterator[torch.device]:
    """Those that a command line means, one after the other, prepared and proven."""
    for each in [name] if name != "auto" else ["cuda", "cpu"][not torch.cuda.is_available() :]:
        device = runtime.prepare(each)
        proof.prove(device)
        yield device


def run(cases: list[Case], device: torch.device, seconds: float, until: float, path: Path) -> dict:
    """Measure cases, their pairs in about `seconds`, and keep every figure in the file at once; returns them all."""
    found: list[dict] = []
    result = about(device) | {"cases": found}
    path.parent.mkdir(parents=True, exist_ok=True)
    found += [size(case) for case in cases]
    works = [measure, look_inside] if device.type == "cuda" else [measure]
    for work, (case, figures) in product(works, zip(cases, found, strict=True)):
        if "failed" in figures:
            continue
        say(f"{case}, on {device}{': the profile' if work is look_inside else ''}")
        try:
            if time.monotonic() > until:
                raise TimeoutError("no time was left for it")
            for more in work(case, device, seconds * case.share):
                figures |= more
                write(path, result)
        except Exception as error:  # whatever it is, the other cases can still be measured
            figures["failed"] = reason(error)
            say(f"  failed: {figures['failed']}")
        write(path, result)
    return result


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def shares(device: torch.device) -> dict:
    """Which share of the bandwidth our kernels reach, where they compute."""
    if not kernels.usable(torch.ones(1, 1, 2, 2, device=device)):
        return {}
    say(f"our kernels' shares of the bandwidth, on {device}")
    try:
        return {"kernels": bandwidths.measure(device, gpu.bandwidth(device))}
    except Exception as error:  # whatever it is, what was measured stays, and the CPU comes yet
        say(f"  failed: {reason(error)}")
        return {}


def measure(case: Case, device: torch.device, seconds: float) -> Iterator[dict]:
    """The figures of a case, one group after the other.

    Raises:
        ValueError: The two forms are not equal; they are not timed.
    """
    difference, passes = compare(KINDS[case.kind], device)
    if not difference <= ROUNDING:
        raise ValueError(f"both forms differ by {difference:.1e} in float64, and that is not by rounding")
    yield {"float64_difference": difference, "published_passes": passes}
    say(f"  equal within {difference:.0e} in float64; a published step is {passes['forward']} passes")

    forms, first = {}, {}
    for name in FORMS:
        forms[name], first[name] = warm(name, case, device)
    taken: dict[str, list[float]] = {name: [] for name in FORMS}
    for number, pair in enumerate(pairs(case, forms, device, seconds), start=1):
        for name in FORMS:
            taken[name].append(pair[name])
        ratios = [slow / fast for slow, fast in zip(taken["published"], taken["ours"], strict=True)]
        say(f"  pair {number}: published {pair['published']:.3f} s, ours {pair['ours']:.3f} s, {ratios[-1]:.2f}x")
        sides = {name: first[name] | {"seconds": spread(taken[name])} for name in FORMS}
        for side in sides.values():
            side["images_per_second"] = case.batch / side["seconds"]["median"]
        yield sides | {"ratio": spread(ratios)}


def look_inside(case: Case, device: torch.device, seconds: float) -> Iterator[dict]:
    """What a GPU does in a step of each form, and how near that is to the least its bytes allow."""
    with plainly:
        step = functools.partial(begin("ours", case, device).step, *batches(case, device, torch.float32))
        floor = {"floor_bytes": gpu.bytes_moved(step), "bandwidth": gpu.bandwidth(device)}
    yield floor
    inside = {}
    for name in FORMS:
        step, _ = warm(name, case, device)
        inside[name] = gpu.profile(step, device)
        inside[name]["floor_fraction"] = floor["floor_bytes"] / floor["bandwidth"] / inside[name]["busy_seconds"]
        yield {"inside": dict(inside)}


def warm(name: str, case: Case, device: torch.device) -> tuple[Step, dict]:
    """A form that has taken its first step, as a function of nothing; and the figures of that step.

    On a GPU that step is at full size, as capture and choice of kernels depend on it, and gives the peak of memory.
    """
    arguments = batches(case, device, torch.float32)
    if device.type != "cuda":
        form = begin(name, case, device)
        form.step(*((images[:2], labels[:2]) for images, labels in arguments))
        return functools.partial(form.step, *arguments), {}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step = functools.partial(begin(name, case, device).step, *arguments)
    seconds = timed(step, device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return step, {"first_step_seconds": seconds, "peak_memory_mib": round(peak / 2**20)}


def pairs(case: Case, forms: dict[str, Step], device: torch.device, seconds: float) -> Iterator[dict[str, float]]:
    """Seconds of a step in each form, in turn, so that a slow moment of the machine meets both."""
    until = time.monotonic() + seconds
    number, longest = 0, 0.0
    while number < case.pairs or time.monotonic() + longest < until:
        pair = {name: timed(step, device) for name, step in forms.items()}
        number, longest = number + 1, max(longest, sum(pair.values()))
        yield pair


def timed(step: Step, device: torch.device) -> float:
    begun = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def start_up(device: torch.device, repeats: int) -> dict[str, dict]:
    """Seconds of fresh processes, the start of Python included."""
    found = {}
    for name, code in START_UP.items():
        command = [sys.executable, "-c", code.replace("{device}", str(device))]
        taken = []
        for _ in range(repeats):
            begun = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            taken.append(time.perf_counter() - begun)
        found[name] = spread(taken)
        say(f"{name}: {found[name]['median']:.2f} s")
    return found


def spread(values: list[float]) -> dict:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "raw": values[:]}


def about(device: torch.device) -> dict:
    """Where and with what figures come about."""
    return {
        "device": name_of(device),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "versions": runtime.versions() | ({"cuda": torch.version.cuda} if device.type == "cuda" else {}),
    }


def size(case: Case) -> dict:
    sizes = {"kind": case.kind, "channels": case.channels, "layers": case.layers, "batch": case.batch}
    return {"case": str(case)} | sizes | {"pixels": case.pixels}


def write(path: Path, result: dict) -> None:
    """Replace the file in one go: what is cut off leaves the last whole one."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def name_of(device: torch.device) -> str:
    """The model of the GPU; or of the CPU, with the number of its cores that we may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    listed = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", listed.read_text()) if listed.exists() else None
    model = found[1] if found else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{re.sub(r'[(](R|TM)[)]', '', model)}, {cores} cores"


def file_name(device: torch.device) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name_of(device).lower()).strip("-") + ".json"


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
