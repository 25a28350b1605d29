"""The figures of a run, collected in one JSON document, scores.json."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arnas.evaluation import checks
from arnas.evaluation.statistics import compared
from arnas.reporting import histories
from arnas.reporting.scores import COLUMNS, Body, Run, strongest, violations
from arnas.space.operations import OPERATIONS


def collect(run: Run) -> dict[str, Any]:
    """The document: models x attacks, comparisons, black-box matrix, transfer; settings, versions, data and digests.

    With it goes what the page's figures show of search and training, and what each artifact took. A score is
    {"correct", "total", "accuracy" in [0, 1], "interval": [low, high] (95%)}. What a run lacks is left out.
    """
    square = run.blackbox["content"].get("square", {}) if run.blackbox else {}
    content = run.images["content"]
    models = {
        name: _model(body, run.evaluations.get(name), {"square": square[name]} if name in square else {})
        for name, body in run.models.items()
    }
    black = run.blackbox["content"] if run.blackbox else None
    for name, outcomes in run.outcomes.items():
        evaluation = run.evaluations[name]["content"]
        models[name] |= {
            **first_attacks(evaluation, outcomes),
            "checks": checked(evaluation, outcomes, black, run.blackbox_outcomes),
        }
    for name in run.trained().keys() & run.histories:
        models[name]["training"] = histories.training(run.histories[name])
    scores: dict[str, Any] = {"models": models}
    if run.search:
        scores["search"] = histories.search(run.search, list(OPERATIONS))
    if pairs := compare(run.outcomes, ["clean", *filter(None, [strongest(models)])]):
        scores["pairs"] = pairs
    if run.blackbox:
        scores["blackbox"] = run.blackbox["content"]["blackbox"]
    if run.transfer:
        model, evaluation = run.transfer
        dataset, name = evaluation["content"]["data"]["dataset"], model["content"]["name"]
        moved = _model(model, evaluation, {}) | {"checks": evaluation["content"].get("checks", [])}
        scores["transfer"] = {dataset: {name: moved}}
    return scores | {
        "settings": run.settings.model_dump(exclude={name: {"path", "download"} for name in ("prepare", "transfer")}),
        "versions": _versions(run),
        "data": {key: content[key] for key in ("dataset", "classes", "shape", "counts")},
        "digests": _digests(run),
        "artifacts": {name: _took(body["origin"]) for name, body in run.artifacts()},
        "warnings": _warnings(run, scores),
    }


def compare(outcomes: Mapping[str, Mapping[str, NDArray[np.generic]]], attacks: Iterable[str]) -> list[dict[str, Any]]:
    """Every two models on the images that both met under an attack.

    Args:
        outcomes: Which of the same images, in the same order, each model gets right under each attack, bool [n].
    """
    met = {attack: [name for name, right in outcomes.items() if attack in right] for attack in attacks}
    return compared(outcomes, [(*pair, attack) for attack, names in met.items() for pair in combinations(names, 2)])


def _model(model: Body, evaluation: Body | None, square: Mapping[str, Any]) -> dict[str, Any]:
    content, found = model["content"], evaluation["content"] if evaluation else {}
    measured = {**found.get("scores", {}), **square}
    if found.get("corrupted"):
        measured["corrupted"] = found["corrupted"]
    return {
        "parameters": content.get("parameters"),
        "macs": content.get("macs"),
        **{attack: measured[attack] for attack in COLUMNS if attack in measured},
        **{key: found[key] for key in ("curve", "corruptions", "notes") if found.get(key)},
        **({"selection": content["selection"]} if content.get("selection") else {}),  # else it was trained elsewhere
    }


def first_attacks(evaluation: Mapping[str, Any], outcomes: Mapping[str, Any]) -> dict[str, Any]:
    """How many images each part of AutoAttack broke that those before it had not; nothing where it was not run.

    Args:
        evaluation: Content of a white-box evaluation.
        outcomes: Its outcomes.safetensors, tensors or arrays.
    """
    parts, first = evaluation.get("autoattack_parts", []), outcomes.get("autoattack_first")
    if not parts or first is None:
        return {}
    return {"autoattack_first": {part: int((first == index).sum()) for index, part in enumerate(parts)}}


def checked(
    evaluation: Mapping[str, Any],
    outcomes: Mapping[str, Any],
    blackbox: Mapping[str, Any] | None,
    blackbox_outcomes: Mapping[str, Any],
) -> list[Mapping[str, Any]]:
    """What was asked of the evaluation itself, to find masked gradients; the black box, where there is one, has a say.

    Args:
        evaluation, blackbox: Contents of the two evaluations.
        outcomes, blackbox_outcomes: Their outcomes.safetensors, tensors or arrays.
    """
    found = list(evaluation.get("checks", []))
    if blackbox and "norm" in evaluation["settings"]:  # earlier versions had no checks
        found += checks.blackbox_no_stronger(evaluation, outcomes, blackbox, blackbox_outcomes)
    return found


def _took(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Time, memory and device, as far as they are known."""
    return {
        key: origin[key] for key in ("seconds", "peak_memory_mib", "peak_gpu_memory_mib", "device") if key in origin
    }


def _versions(run: Run) -> dict[str, str]:
    """Version of each library; several where the artifacts come from several."""
    found: dict[str, set[str]] = {}
    for _, body in run.artifacts():
        for name, version in body["origin"].get("versions", {}).items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


def _digests(run: Run) -> dict[str, Any]:
    digests: dict[str, Any] = {"images": run.images["digest"]}
    if run.supernet:
        digests["supernet"] = run.supernet["digest"]
    if run.genotype:
        digests["genotype"] = run.genotype["digest"]
    digests["models"] = {name: body["digest"] for name, body in run.models.items()}
    digests["evaluations"] = {name: body["digest"] for name, body in run.evaluations.items()}
    if run.blackbox:
        digests["blackbox"] = run.blackbox["digest"]
    if run.transfer:
        digests["transfer"] = {"model": run.transfer[0]["digest"], "evaluation": run.transfer[1]["digest"]}
    return digests


def _warnings(run: Run, scores: Mapping[str, Any]) -> list[str]:
    """What the search and the evaluations warn of; each evaluation's under its model's name."""
    warnings = [f"search: {message}" for message in run.supernet["content"]["collapse"]] if run.supernet else []
    evaluations = list(run.evaluations.items())
    if run.transfer:
        content = run.transfer[1]["content"]
        evaluations.append((f"{content['model']} on {content['data']['dataset']}", run.transfer[1]))
    warnings += [f"{name}: {message}" for name, body in evaluations for message in body["content"]["warnings"]]
    return list(dict.fromkeys(warnings + violations(scores)))
