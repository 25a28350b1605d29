"""What the options cost that are not exact: `python -m benchmarks.ablation`, about a quarter of an hour on two cores.

Search, training and attack on digits, shorter than in the preset, once for each option and seed. Writes the outcomes
to benchmarks/results/ablation-digits.json, and their table into docs/speed.md. Stopped, it goes on where it was.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

from arnas import config, runtime
from arnas.errors import InvalidInput
from arnas.evaluation.statistics import spread
from arnas.stages import derive, prepare, retrain, search, whitebox

ROOT = Path(__file__).parents[1]
MARKS = "<!-- the ablation's table: written by benchmarks/ablation.py -->", "<!-- its end -->"

#: Name: hypergradient of the search, precision of the training; the first is the default
OPTIONS = {
    "the default: finite differences, fp32": ("finite_difference", "fp32"),
    "exact hypergradient": ("exact", "fp32"),
    "first-order hypergradient": ("first_order", "fp32"),
    "training in bf16": ("finite_difference", "bf16"),
    "training in TF32": ("finite_difference", "tf32"),
}
SHORTER = {"search.epochs": 1, "retrain.epochs": 8, "retrain.attack_steps": 3, "whitebox.autoattack_images": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "ablation", help="artifacts and checkpoints")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "ablation-digits.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "speed.md")
    told = parser.parse_args()
    chosen = runtime.prepare(told.device)
    prepare.run(told.output / "images", config.load(told.preset).prepare)
    runs = [
        {"option": option, "seed": seed} | run(told.output, told.preset, seed, told.device, *choices)
        for seed in range(told.seeds)
        for option, choices in OPTIONS.items()
        if available(choices[1], chosen)
    ]
    origin = runtime.Origin(chosen).report()
    results = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": origin["device"],
        "versions": origin["versions"],
        "preset": told.preset,
        "changes": SHORTER,
        "runs": runs,
    }
    told.results.parent.mkdir(parents=True, exist_ok=True)
    told.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = told.page.read_text(encoding="utf-8")
    before, _, rest = page.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    told.page.write_text(f"{before}{MARKS[0]}\n{table(results)}\n{MARKS[1]}{after}", encoding="utf-8")
    print(table(results))


def available(precision: str, chosen: Any) -> bool:
    try:
        runtime.require_precision(precision, chosen)
    except InvalidInput:
        return False
    return True


def run(output: Path, preset: str, seed: int, device: str, hypergradient: str, precision: str) -> dict[str, Any]:
    """Counts of right test images, clean and under PGD-20, and the genotype that was searched."""
    choices = {"seed": seed, "search.hypergradient": hypergradient, "retrain.precision": precision}
    settings = config.load(preset, SHORTER | choices)
    images, searched = output / "images", output / f"{hypergradient}-{seed}"
    told: dict[str, Any] = {"checkpoints": output / "checkpoints", "device": device}
    model, genotype = searched.with_name(f"{searched.name}-{precision}"), searched.with_suffix(".json")
    search.run(images, searched, settings.search, **told)
    derive.run(searched, genotype)
    retrain.run(images, model, settings.recipe("searched"), name="searched", genotype=genotype, **told)
    found = whitebox.run(model, images, model.with_suffix(".evaluation"), settings.whitebox, **told)
    cells = json.loads(genotype.read_text(encoding="utf-8"))["cells"]
    return {"clean": found["clean"], "pgd20": found["pgd20"], "cells": cells}


def table(results: dict[str, Any]) -> str:
    """The outcomes as markdown: mean and sample standard deviation over the seeds."""
    options = list(dict.fromkeys(run["option"] for run in results["runs"]))
    by_option = {option: [run for run in results["runs"] if run["option"] == option] for option in options}
    reference = by_option[options[0]]
    lines = ["| option | clean | PGD-20 | edges as in the default's genotype |", "|---|---|---|---|"]
    for option, runs in by_option.items():
        same = spread([alike(one["cells"], other["cells"]) for one, other in zip(runs, reference, strict=True)])
        figures = [_percent(spread([one[name] for one in runs])) for name in ("clean", "pgd20")]
        lines.append(f"| {option} | {figures[0]} | {figures[1]} | {100 * same['mean']:.0f}% |")
    seeds, versions = len(reference), results["versions"]
    lines.append(
        f"\nMean and standard deviation over {seeds} seeds; preset {results['preset']} with "
        f"{', '.join(f'{key}={value}' for key, value in results['changes'].items())}; {results['device']}, "
        f"torch {versions['torch']}, arnas {versions['arnas']}, {results['date']}."
    )
    return "\n".join(lines)


def alike(cells: dict[str, Any], others: dict[str, Any]) -> float:
    """Share of the edges of a genotype that stand in another one too, at the same node."""
    pairs = [(node, other) for kind in cells for node, other in zip(cells[kind], others[kind], strict=True)]
    return sum(edge in other for node, other in pairs for edge in node) / sum(len(node) for node, _ in pairs)


def _percent(figures: Any) -> str:
    deviation = "" if figures["spread"] is None else f" ± {100 * figures['spread']:.1f}"
    return f"{100 * figures['mean']:.1f}%{deviation}"


if __name__ == "__main__":
    main()
