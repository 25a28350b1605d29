"""The page of all results: README.md and its chart, from the JSON files in results/ and from nothing else."""

import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

COLOURS = {"search": "#1f83c6", "retrain": "#d55e00", "attack": "#009e73", "autoattack": "#8a5fbf"}
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "arnas", "font.size": 9}

INTRODUCTION = """\
# Benchmarks

How much faster the steps of `arnas` are than the form in which they were published. `make bench` measures it on your
machine, on its GPU if it has one and on its CPU, in under ten minutes, adds `results/DEVICE.json` and writes this page
from all such files.

- The published form is in [published.py](published.py), line by line what the ratio is taken against; what is
  compared, at which sizes, is in [cases.py](cases.py). Our form is what the stages run.
- Both are first shown to be equal: two steps in float64 of a small network, from the same random numbers, must lead to
  the same weights or images within rounding. Then they run in turn, in one process, in float32; where a row names
  TF32, the convolutions of that form may use it.
- Times are medians; a ratio is the median of those of the pairs, with the smallest and the largest. The files have the
  raw seconds. Passes are those of the published form; images a second are those of one batch by the median.
- On a GPU, kernels and busy time are those of one step as the profiler saw it, copies included, and memory is the peak
  of the first step. The floor is the time that the bytes of the convolutions of our step take at the speed of a copy,
  when each convolution reads and writes each of its tensors once; a form's share of it is that time by its busy time.
  Kernels of our own are also measured alone, on stacks that no cache holds, against the speed of a copy.
"""


def write(folder: Path) -> None:
    """Write folder/README.md, and folder/ratios.svg if folder/results has ratios."""
    files = sorted((folder / "results").glob("*.json"))
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    results, tables = ([result for result in found if name in result] for name in ("cases", "levers"))
    chart = folder / "ratios.svg"
    chart.unlink(missing_ok=True)
    shown = [
        show(result)
        for device in dict.fromkeys(result["device"] for result in results + tables)
        for show, those in ((section, results), (levers, tables))
        for result in those
        if result["device"] == device
    ] or ["There are no results yet."]
    if any("ratio" in case for result in results for case in result["cases"]):
        draw(results, chart)
        shown.insert(0, "![Published time divided by ours, for each step and device](ratios.svg)")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("\n".join([INTRODUCTION, "\n\n".join(shown), ""]), encoding="utf-8")


def section(result: dict) -> str:
    """A device: what it is, a row for each case, what could not be measured, and how long it takes to start."""
    columns = {
        "step": lambda case: case["case"],
        "published": lambda case: f"{case['published']['seconds']['median']:.3g} s",
        "ours": lambda case: f"{case['ours']['seconds']['median']:.3g} s",
        "ratio": lambda case: ratio(case["ratio"]),
        "pairs": lambda case: str(len(case["ratio"]["raw"])),
        "passes": lambda case: str(case["published_passes"]["forward"]),
        "images a second": lambda case: both(case, "images_per_second", "{:.3g}"),
        "float64 difference": lambda case: f"{case['float64_difference']:.0e}",
    }
    if result["kind"] == "cuda":
        columns |= {
            "kernels": lambda case: both(case.get("inside", {}), "launches", "{:,}"),
            "busy": lambda case: both(case.get("inside", {}), "busy_seconds", "{:.3g} s"),
            "share of floor": lambda case: both(case.get("inside", {}), "floor_fraction", "{:.0%}"),
            "memory": lambda case: both(case, "peak_memory_mib", "{:,} MiB"),
        }
    rows = [[cell(case) for cell in columns.values()] for case in result["cases"] if "ratio" in case]
    blocks = [f"## {result['device']}", about(result), table([*columns], rows)]
    blocks += [f"{case['case']} failed: {case['failed']}" for case in result["cases"] if "failed" in case]
    if kernels := result.get("kernels"):
        rows = [
            [kernel["kernel"], f"{1e6 * kernel['seconds']:.3g} us", f"{kernel['bytes'] / 1e6:.3g} MB", share]
            for kernel in kernels
            for share in [f"{kernel['bandwidth_share']:.0%}"]
        ]
        blocks.append(table(["kernel", "time", "bytes", "share of the bandwidth"], rows))
    if "start_up" in result:
        times = (f"`{name}` {taken['median']:.2f} s" for name, taken in result["start_up"].items())
        blocks.append(f"A fresh process: {', '.join(times)}.")
    return "\n\n".join(blocks)


def levers(result: dict) -> str:
    """A device: a row for each lever of our form, and what could not be measured."""
    found = {
        (figures["lever"], figures["case"]): figures["ratio"] for figures in result["levers"] if "ratio" in figures
    }
    names, cases = (list(dict.fromkeys(column)) for column in zip(*found, strict=True)) if found else ([], [])
    rows = [[name, *(ratio(found[name, case]) if (name, case) in found else "" for case in cases)] for name in names]
    pairs = [min(len(spread["raw"]) for (_, of), spread in found.items() if of == case) for case in cases]
    blocks = [
        f"### {result['device']}: what each lever gives",
        f"{about(result)}: how many times as long a step takes without a lever of [levers.py](levers.py).",
        table(["without", *cases], [*rows, ["pairs, at least", *map(str, pairs)]]),
    ]
    blocks += [f"{f['lever']}, {f['case']}, failed: {f['failed']}" for f in result["levers"] if "failed" in f]
    return "\n\n".join(blocks)


def about(result: dict) -> str:
    versions = result["versions"]
    threads = f", {result['threads']} threads" if result["kind"] == "cpu" else ""
    torch, python, arnas = versions["torch"], versions["python"], versions["arnas"]
    return f"{result['date']}, torch {torch}, Python {python}, arnas {arnas}{threads}"


def table(columns: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *rows])


def ratio(spread: dict) -> str:
    """The median in bold where no pair says the contrary."""
    median = f"{spread['median']:.2f}x"
    shown = f"**{median}**" if spread["min"] > 1 or spread["max"] < 1 else median
    return f"{shown} ({spread['min']:.2f} to {spread['max']:.2f})"


def both(sides: dict, name: str, form: str) -> str:
    """A figure in the published form and in ours; - where a run was cut off before it."""
    figures = (sides.get(side, {}).get(name) for side in ("published", "ours"))
    return " → ".join("-" if figure is None else form.format(figure) for figure in figures)


def draw(results: list[dict], path: Path) -> None:
    """Bars of the median ratios, with whiskers from the smallest to the largest; on white, for dark pages too."""
    rows = [(result["device"], case) for result in results for case in result["cases"] if "ratio" in case]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 0.6 + 0.45 * len(rows)), layout="constrained", facecolor="white")
        axes = figure.subplots()
        for place, (_, case) in enumerate(rows):
            found = case["ratio"]
            whiskers = [[found["median"] - found["min"]], [found["max"] - found["median"]]]
            axes.barh(place, found["median"], 0.6, xerr=whiskers, color=COLOURS[case["kind"]], ecolor="#333333")
            axes.annotate(
                f"{found['median']:.2f}x", (found["max"], place), (4, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(rows)), [f"{case['case']}\n{device}" for device, case in rows])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.axvline(1, color="#333333", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("published time / our time")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
