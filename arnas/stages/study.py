"""Stage study: what several networks that differ in a few settings, the variants, have shown; as JSON, CSV and a page.

Every figure comes out of the artifacts: what was trained and attacked is told, not what was asked for.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors.torch import load_file

from arnas import artifacts, runtime
from arnas.config import Settings
from arnas.errors import InvalidInput
from arnas.evaluation import statistics
from arnas.evaluation.checks import LADDER
from arnas.reporting import read, words
from arnas.reporting.collect import checked, first_attacks
from arnas.space.genotype import Genotype
from arnas.space.layout import KINDS
from arnas.space.operations import OPERATIONS

SCHEMA = "arnas.study/1"
EVERY_PAIR = 12  # up to so many variants all pairs are compared; of more, each with the first one
Pathlike = str | Path
Body = dict[str, Any]


def run(
    variants: Sequence[Mapping[str, Any]],
    models: Sequence[Pathlike],
    evaluations: Sequence[Pathlike],
    output: Pathlike,
    *,
    name: str,
    settings: Settings,
    blackbox: Pathlike | None = None,
    page: Pathlike | None = None,
    table: Pathlike | None = None,
) -> dict[str, Any]:
    """Collect the variants of a study, and compare them.

    Two variants are compared in pairs (McNemar's exact test on the outcomes of the single images, Holm's adjustment
    over all pairs) under no attack and under the strongest that both met, where both were attacked on the same images
    with the same settings. Of more than 12 variants each is compared with the first one alone, and runs that differ in
    their seed alone are not compared in pairs: their mean and spread are told, and never the best of them.

    Args:
        variants: For each its `name`, that of its model, and the settings that it changes; none for as many variants
            as there are models.
        models: Their models, in any order.
        evaluations: White-box evaluations of these, in any order.
        output: File to write, JSON.
        name: Name of the study: placement, comparison, transfer, seeds, ablation, or another.
        settings: Those that the variants have in common.
        blackbox: Black-box evaluation of the models.
        page: HTML file to write.
        table: CSV file to write, a row for each variant.

    Returns:
        digest, number of variants, and of each attack the mean and spread where the variants differ in their seed
        alone; else the accuracies clean and under the strongest attack, and of more than 12 variants instead lowest,
        mean and highest under each attack that all of them met.

    Raises:
        InvalidInput: An artifact is missing, damaged, or belongs to none of the variants.
    """
    artifacts.require_writable(output, page, table)
    bodies = read.models(models)
    attacked = {
        model: body | {"outcomes": load_file(path / "outcomes.safetensors")}
        for model, (body, path) in read.evaluations(evaluations, bodies).items()
    }
    variants = variants or [{"name": model} for model in bodies]
    _require_all(variants, bodies, attacked)
    names = [str(variant["name"]) for variant in variants]
    left_out = ("name", "prepare.path")  # where data lie says nothing of them
    changes = [{key: value for key, value in variant.items() if key not in left_out} for variant in variants]
    black = _blackbox(blackbox, bodies)
    rows = [_row(one, change, bodies[one], attacked[one], black) for one, change in zip(names, changes, strict=True)]
    repeated = _only_seeds(changes)
    study: Body = {
        "schema": SCHEMA,
        "study": name,
        "variants": rows,
        "accuracy": _accuracy(rows) if repeated else None,
        "pairs": [] if repeated else _pairs(rows, attacked),
        **_choices([bodies[one] for one in names] if repeated else []),
        "blackbox": _matrix(black),
        "settings": _settings(settings, [*attacked.values()]),
        "versions": runtime.versions(),
        "warnings": [*_recipes(changes, bodies, attacked)],
    }
    study["digest"] = artifacts.digest(_lasting(study))
    artifacts.write_text(output, json.dumps(study, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if table is not None:
        artifacts.write_text(table, _csv(rows))
    if page is not None:
        from arnas.reporting import study as reporting

        artifacts.write_text(page, reporting.page(study))
    return {"digest": study["digest"], "variants": len(rows)} | _figures(study)


# ---------------------------------------------------------------------------------------------- what artifacts say


def _require_all(variants: Sequence[Mapping[str, Any]], *found: Mapping[str, Body]) -> None:
    names = [variant.get("name") for variant in variants]
    for bodies, what in zip(found, ("model", "evaluation"), strict=True):
        if not names or sorted(map(str, names)) != sorted(bodies):
            raise InvalidInput(
                f"The study has the variants {', '.join(map(str, names)) or 'none'}, but the {what}s are of "
                f"{', '.join(bodies) or 'none'}; give one {what} for each variant, under its name."
            )


def _row(name: str, changes: Mapping[str, Any], model: Body, evaluation: Body, black: Body) -> Body:
    content, network, attacked = model["content"], model["content"].get("network", {}), evaluation["content"]
    cells = network.get("cells")
    row = {
        "name": name,
        "changes": dict(changes),
        "dataset": content["data"]["dataset"],
        "architecture": network.get("architecture"),
        "layout": network.get("layout"),
        "cells": cells,
        "parameters": content["parameters"],
        "macs": content["macs"],
        "selection": content.get("selection", {}),
        "scores": attacked["scores"],
        "warnings": list(attacked["warnings"]),
        "genotype": {"digest": artifacts.digest(cells), "skips": _genotype(model).skip_connections()}
        if cells
        else None,
        "model_digest": model["digest"],
        "evaluation_digest": evaluation["digest"],
    }
    row |= {key: attacked[key] for key in ("corrupted", "curve", "corruptions", "notes") if key in attacked}
    return {
        **row,
        **first_attacks(attacked, evaluation["outcomes"]),
        "checks": checked(attacked, evaluation["outcomes"], black.get("content"), black.get("outcomes", {})),
    }


def _genotype(model: Body) -> Genotype:
    return Genotype.from_json(model["content"]["network"]["cells"], f"model {model['content']['name']}")


def _blackbox(path: Pathlike | None, models: Mapping[str, Body]) -> Body:
    """The black-box evaluation, with the `outcomes` of its images; empty where there is none."""
    if path is None:
        return {}
    body = artifacts.read(path, "blackbox")
    if body["content"]["model_digests"] != {name: model["digest"] for name, model in models.items()}:
        raise InvalidInput(f"Black-box evaluation {path} is of other models; give the one of the study's models.")
    return body | {"outcomes": load_file(Path(path) / "outcomes.safetensors")}


def _matrix(black: Body) -> dict[str, Any] | None:
    """Scores by source and target; the source "square" is the attack of that name, which has no source network."""
    if not black:
        return None
    content = black["content"]
    return {**content["blackbox"]} | ({"square": content["square"]} if content["square"] else {})


# ------------------------------------------------------------------------------------------------------ comparison


def _only_seeds(changes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the variants are one thing, repeated: they change seeds, and nothing else."""
    return len(changes) > 1 and {setting for change in changes for setting in _changed(change)} == {"seed"}


def _common(rows: Sequence[Body]) -> list[str]:
    """Attacks that all variants met, in the order of the first one's."""
    return [attack for attack in rows[0]["scores"] if all(attack in row["scores"] for row in rows)]


def strongest_of_all(rows: Sequence[Body]) -> str | None:
    """The strongest of the attacks that all variants met, None where they met none."""
    found = [attack for attack in LADDER[1:] if attack in _common(rows)]
    return found[-1] if found else None


def _accuracy(rows: Sequence[Body]) -> dict[str, statistics.Spread]:
    return {attack: statistics.spread([row["scores"][attack]["accuracy"] for row in rows]) for attack in _common(rows)}


def _pairs(rows: Sequence[Body], attacked: Mapping[str, Body]) -> list[Body]:
    """Comparisons on the same images under the same attacks, with p values adjusted for all of them together."""
    chosen = combinations(rows, 2) if len(rows) <= EVERY_PAIR else ((rows[0], other) for other in rows[1:])
    return statistics.compared(
        {name: body["outcomes"] for name, body in attacked.items()},
        (
            (one["name"], other["name"], attack)
            for one, other in chosen
            if _alike(attacked[one["name"]], attacked[other["name"]])
            for attack in ("clean", strongest_of_all([one, other]))
            if attack
        ),
    )


def _alike(one: Body, other: Body) -> bool:
    """Whether two evaluations are of the same images, attacked in the same way."""
    return one["content"]["images"] == other["content"]["images"] and _attacks(one) == _attacks(other)


def _attacks(evaluation: Body) -> dict[str, Any]:
    """Settings of an evaluation on which its outcomes depend, but for chance."""
    kept = evaluation["content"]["settings"].items()
    return {key: value for key, value in kept if key not in ("seed", "batch_size", "block_size", "examples")}


def _settings(settings: Settings, attacked: Sequence[Body]) -> dict[str, Any]:
    """The settings that the variants have in common; those of the attacks as the evaluations tell them."""
    common = settings.model_dump(
        mode="json", exclude={"models": True, "transfer": True, "prepare": {"path", "download"}}
    )
    if all(_attacks(one) == _attacks(attacked[0]) for one in attacked):  # else a warning says so
        common["whitebox"] |= _attacks(attacked[0])
    return common


def _recipes(
    changes: Sequence[Mapping[str, Any]], models: Mapping[str, Body], attacked: Mapping[str, Body]
) -> Iterator[str]:
    """What keeps the variants from being compared, in sentences."""
    told = {setting for change in changes for setting in _changed(change)}
    for bodies, sentence in (
        (models, "The networks were not trained under one recipe: {} differ besides what the study varies."),
        (attacked, "The networks were not attacked alike: {} differ; such variants are not compared in pairs."),
    ):
        settings = [body["content"]["settings"] for body in bodies.values() if body["content"]["settings"]]
        keys = dict.fromkeys(key for each in settings for key in each)
        others = [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]
        if bodies is models:
            others = [key for key in others if key not in told]
        else:
            others = [key for key in others if any(_attacks(body).get(key) is not None for body in bodies.values())]
        if others:
            yield sentence.format(", ".join(others))
    if len({body["content"]["images"] for body in attacked.values()}) > 1:
        yield "The variants were tested on different images; those on other images are not compared in pairs."
    if adopted := [name for name, body in models.items() if not body["content"]["settings"]]:
        yield words.elsewhere(adopted)


def _changed(changes: Mapping[str, Any]) -> Iterator[str]:
    """Names of the settings, without their sections."""
    for key, value in changes.items():
        if isinstance(value, Mapping):
            yield from _changed(value)
        else:
            yield key.rpartition(".")[2]


# ------------------------------------------------------------------------------------------- what searches have chosen


def _choices(models: Sequence[Body]) -> Body:
    """Operations that searches chose, by cell kind; None where fewer than two of the networks were searched.

    Args:
        models: Repeats of one search: shares and tests take each genotype for a draw of the same chance.
    """
    searched = [_genotype(body) for body in models if body["content"]["settings"].get("architecture") == "searched"]
    if len(searched) < 2:
        return {"operations": None, "kinds_differ": None, "agreement": None}
    chosen = [
        {kind: [operation for node in nodes for operation, _ in node] for kind, nodes in genotype.cells.items()}
        for genotype in searched
    ]
    edges = {kind: len(names) for kind, names in chosen[0].items()}
    return {
        "operations": {
            kind: {
                name: statistics.share([cells[kind].count(name) for cells in chosen], edges[kind])
                for name in OPERATIONS
            }
            for kind in KINDS.values()
        },
        "kinds_differ": statistics.kinds_differ(chosen),
        "agreement": {
            kind: fmean(_shared(one, other, kind) for one, other in combinations(searched, 2))
            for kind in KINDS.values()
        },
    }


def _shared(one: Genotype, other: Genotype, kind: str) -> float:
    """Share of a cell's edges, operation and input, that stand in another's cell too, at the same node."""
    nodes = list(zip(one.cells[kind], other.cells[kind], strict=True))
    return sum(edge in theirs for own, theirs in nodes for edge in own) / sum(len(own) for own, _ in nodes)


# ------------------------------------------------------------------------------------------------------ what is written


def _lasting(study: Body) -> Body:
    """What does not differ between two runs of the same study."""
    return {key: value for key, value in study.items() if key != "versions"}


def _csv(rows: Sequence[Body]) -> str:
    """A row for each variant: what it is, and of each attack accuracy, interval and counts."""
    own = ("name", "dataset", "architecture", "layout", "parameters", "macs")
    changed = dict.fromkeys(key for row in rows for key in row["changes"])
    attacks = dict.fromkeys(attack for row in rows for attack in row["scores"])
    lines = []
    for row in rows:
        line = {key: row[key] for key in own} | {key: row["changes"].get(key) for key in changed}
        for attack in attacks:
            score = row["scores"].get(attack, {})
            low, high = score.get("interval", (None, None))
            line |= {attack: score.get("accuracy"), f"{attack}_low": low, f"{attack}_high": high}
            line |= {f"{attack}_{key}": score.get(key) for key in ("correct", "total")}
        lines.append(line)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _figures(study: Body) -> dict[str, float]:
    """The main figures under flat names: what a person can take in, so of many variants their range alone."""
    rows = study["variants"]
    parts: tuple[str, ...] = ("mean", "spread")
    spreads: Mapping[str, Any] = study["accuracy"] or {}
    if not spreads and len(rows) > EVERY_PAIR:
        parts, spreads = ("lowest", "mean", "highest"), _accuracy(rows)
    if not spreads:
        attacks = [attack for attack in ("clean", strongest_of_all(rows)) if attack]
        return {f"{row['name']} {attack}": row["scores"][attack]["accuracy"] for row in rows for attack in attacks}
    return {f"{attack}_{part}": spread[part] for part in parts for attack, spread in spreads.items()}
