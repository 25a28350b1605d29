"""What the pages share: the frame around their figures, filters, the script, and files to download."""

import base64
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from arnas import config
from arnas.reporting import words

INTENSITIES = ("epsilon", "step_size")  # settings that are given as fractions of 255
CSV = ("artifact", "model", "dataset", "attack", "correct", "total", "accuracy", "low", "high")
Row = tuple[str, str, str, str, Mapping[str, Any]]  # the first four of CSV, and a score


@dataclass(frozen=True)
class Download:
    """A file that the page holds itself, in the link to it."""

    label: str
    name: str
    media: str
    text: str

    @property
    def address(self) -> str:
        return f"data:{self.media};base64,{base64.b64encode(self.text.encode()).decode()}"

    @property
    def size(self) -> str:
        return f"{len(self.text.encode()) / 1000:.1f} kB"


def downloads(name: str, document: str, rows: Iterable[Row]) -> list[Download]:
    """The page's document, a JSON text; its scores as CSV, a row for each; and all of it as CSV."""
    return [
        Download("JSON", f"{name}.json", "application/json", document),
        Download("scores as CSV", f"{name}.csv", "text/csv", flat(rows)),
        Download(
            "all of it as CSV", f"{name}-all.csv", "text/csv", _csv(("path", "value"), leaves(json.loads(document)))
        ),
    ]


def flat(rows: Iterable[Row]) -> str:
    """Scores as CSV with the columns of `CSV`: a line for each, accuracies and interval ends in [0, 1]."""
    lines = (
        [*names, score["correct"], score["total"], score["accuracy"], *score["interval"]] for *names, score in rows
    )
    return _csv(CSV, lines)


def leaves(part: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a JSON document that holds no other: its path, a JSON pointer (RFC 6901), and its text."""
    inner = part if isinstance(part, dict) else dict(enumerate(part)) if isinstance(part, list) else {}
    for key, value in inner.items():
        yield from leaves(value, f"{path}/{str(key).replace('~', '~0').replace('/', '~1')}")
    if not inner:
        yield path, part if isinstance(part, str) else json.dumps(part)


def _csv(columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()


def page(template: str, *, files: Sequence[Download], **values: Any) -> str:
    """A page from one of the templates beside this module. It runs our script and nothing else."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_text),
    )
    environment.filters |= {
        "percent": words.percent,
        "points": words.points,
        "chance": words.chance,
        "intensity": config.intensity,
        "duration": words.duration,
        "as_yaml": as_yaml,
    }
    script = _text("sort.js")
    text: str = environment.get_template(template).render(
        style=Markup(_text("page.css")),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        downloads=files,
        **values,
    )
    return text.lstrip()


def _text(name: str) -> str:
    return resources.files("arnas.reporting").joinpath(name).read_text(encoding="utf-8")


def as_yaml(values: Any) -> str:
    """Settings as the text of a preset file, which says 8/255 and not 0.03137254901960784."""
    text: str = yaml.safe_dump(_fractions(values), sort_keys=False, allow_unicode=True, width=100)
    return text


def _fractions(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _fraction(value) if key in INTENSITIES else _fractions(value) for key, value in values.items()}
    return values


def _fraction(value: float | str) -> float | str:
    """As text where it is exactly a fraction; the settings of one of `models` may hold text already."""
    return text if isinstance(value, float) and "/" in (text := config.intensity(value)) else value
