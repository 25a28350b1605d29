"""Stage seeds: what several searches that differ in their seed alone have in common, and how far they differ."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arnas import artifacts
from arnas.errors import InvalidInput
from arnas.evaluation.statistics import spread
from arnas.space import genotype as genotypes
from arnas.space.layout import KINDS
from arnas.space.operations import OPERATIONS


def run(genotype_files: Sequence[str | Path], evaluations: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Summarise searches by seed: the spread of each accuracy, and which operations each kind of cell chose.

    Args:
        genotype_files: The genotype of each seed, as written by derive.
        evaluations: The white-box evaluation of each seed's network, in the same order.
        output: File to write: `seeds` (a row for each), `accuracy` (by attack) and `operations` (by cell kind), JSON.

    Returns:
        digest, and by attack the mean and the spread (sample standard deviation, where there are two seeds or more).

    Raises:
        InvalidInput: A file cannot be read, none is given, a seed comes twice, or the evaluations are not comparable.
    """
    artifacts.require_writable(output)
    if not genotype_files or len(genotype_files) != len(evaluations):
        raise InvalidInput(
            f"seeds got {len(genotype_files)} genotypes and {len(evaluations)} evaluations; give one each a seed."
        )
    found = [genotypes.load(str(path)) for path in genotype_files]
    contents = [artifacts.read(path, "evaluation")["content"] for path in evaluations]
    rows = [_row(document, content) for (_, document), content in zip(found, contents, strict=True)]
    _require_comparable(rows, contents)
    accuracy = {attack: spread([row[attack] for row in rows]) for attack in contents[0]["scores"]}
    chosen = {
        kind: Counter(name for genotype, _ in found for name in _names(genotype, kind)) for kind in KINDS.values()
    }
    summary = {
        "seeds": rows,
        "accuracy": accuracy,
        "operations": {kind: {name: counts[name] for name in OPERATIONS} for kind, counts in chosen.items()},
    }
    artifacts.write_text(output, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    figures: dict[str, Any] = {"digest": artifacts.digest(summary), "seeds": len(rows)}
    for attack, found_spread in accuracy.items():
        figures[f"{attack}_mean"] = found_spread["mean"]
        if found_spread["spread"] is not None:
            figures[f"{attack}_spread"] = found_spread["spread"]
    return figures


def _row(document: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    accuracies = {attack: entry["accuracy"] for attack, entry in content["scores"].items()}
    return {"seed": document["origin"].get("seed"), "genotype": document["digest"]} | accuracies


def _names(genotype: genotypes.Genotype, kind: str) -> list[str]:
    return [operation for node in genotype.cells[kind] for operation, _ in node]


def _require_comparable(rows: list[dict[str, Any]], contents: list[dict[str, Any]]) -> None:
    seeds = [row["seed"] for row in rows]
    if len(set(seeds)) < len(seeds):
        raise InvalidInput(f"The genotypes are of the seeds {', '.join(map(str, seeds))}; give each seed once.")
    attacked = {(content["images"], artifacts.digest(content["settings"])) for content in contents}
    if len(attacked) > 1:
        raise InvalidInput("The evaluations differ in their images or settings; give those of one set of images.")
