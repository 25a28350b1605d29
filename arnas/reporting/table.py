"""The scores as a plain-text table for a terminal."""

from collections.abc import Mapping
from typing import Any

from arnas.reporting.scores import COLUMNS
from arnas.reporting.words import percent


def table(scores: Mapping[str, Any]) -> str:
    """Models x attacks of a scores.json: accuracy and counts; an attack that no model met has no column."""
    models = scores["models"]
    attacks = [attack for attack in COLUMNS if any(attack in entry for entry in models.values())]
    rows = [["model", "parameters", *(COLUMNS[attack] for attack in attacks)]]
    for name, entry in models.items():
        rows.append([name, f"{entry['parameters']:,}", *(_cell(entry.get(attack)) for attack in attacks)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def _cell(score: Mapping[str, Any] | None) -> str:
    return f"{percent(score['accuracy'])} {score['correct']}/{score['total']}" if score else "-"
