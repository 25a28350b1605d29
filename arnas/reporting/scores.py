"""The figures of a run in one JSON document, scores.json, and the parts that they come from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arnas.config import Settings

ATTACKS = {  # weakest first; Square last, since it does not see the network
    "clean": "clean",
    "fgsm": "FGSM",
    "pgd20": "PGD-20",
    "pgd100": "PGD-100",
    "autoattack": "AutoAttack",
    "square": "Square",
}

Body = Mapping[str, Any]  # of an artifact: content, digest, origin


@dataclass(frozen=True)
class Run:
    """What a run left behind: artifacts' bodies and what lies beside them; None or empty where it has no such part."""

    settings: Settings
    images: Body
    genotype: Body | None
    supernet: Body | None
    search: Mapping[str, Any] | None  # history.json of the supernet
    models: Mapping[str, Body]
    histories: Mapping[str, Mapping[str, Any]]  # history.json of each model; those adopted from elsewhere have none
    evaluations: Mapping[str, Body]  # by the name of the model
    examples: Mapping[str, Mapping[str, NDArray[np.generic]]]  # examples.safetensors of each evaluation
    blackbox: Body | None
    transfer: tuple[Body, Body] | None  # model, evaluation

    def trained(self) -> dict[str, Body]:
        """The models whose training is known: all but those adopted from elsewhere."""
        return {name: body for name, body in self.models.items() if body["content"]["settings"]}

    def artifacts(self) -> Iterator[tuple[str, Body]]:
        """Every artifact, by what it is."""
        yield "images", self.images
        if self.supernet:
            yield "supernet", self.supernet
        for name, body in self.models.items():
            yield f"model {name}", body
        for name, body in self.evaluations.items():
            yield f"white-box evaluation of {name}", body
        if self.blackbox:
            yield "black-box evaluation", self.blackbox
        if self.transfer:
            yield "transferred model", self.transfer[0]
            yield "evaluation of the transferred model", self.transfer[1]


def collect(run: Run) -> dict[str, Any]:
    """The document: models x attacks, black-box matrix, transfer; settings, versions, data and digests behind them.

    A score is {"correct", "total", "accuracy" in [0, 1], "interval": [low, high] (95%)}. What a run lacks is left out.
    """
    square = run.blackbox["content"].get("square", {}) if run.blackbox else {}
    content = run.images["content"]
    scores: dict[str, Any] = {
        "models": {
            name: _model(body, run.evaluations.get(name), {"square": square[name]} if name in square else {})
            for name, body in run.models.items()
        }
    }
    if run.blackbox:
        scores["blackbox"] = run.blackbox["content"]["blackbox"]
    if run.transfer:
        model, evaluation = run.transfer
        dataset, name = evaluation["content"]["data"]["dataset"], model["content"]["name"]
        scores["transfer"] = {dataset: {name: _model(model, evaluation, {})}}
    return scores | {
        "settings": run.settings.model_dump(exclude={"prepare": {"path"}, "transfer": {"path"}}),
        "versions": _versions(run),
        "data": {key: content[key] for key in ("dataset", "classes", "shape", "counts")},
        "digests": _digests(run),
        "warnings": _warnings(run),
    }


def _model(model: Body, evaluation: Body | None, square: Mapping[str, Any]) -> dict[str, Any]:
    content = model["content"]
    measured = dict(evaluation["content"]["scores"] if evaluation else {}) | dict(square)
    return {
        "parameters": content["parameters"],
        "macs": content["macs"],
        **{attack: measured[attack] for attack in ATTACKS if attack in measured},
        "selection": content["selection"],
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


def _warnings(run: Run) -> list[str]:
    """What the search and the evaluations warn of; each evaluation's under its model's name."""
    warnings = [f"search: {message}" for message in run.supernet["content"]["collapse"]] if run.supernet else []
    evaluations = list(run.evaluations.items())
    if run.transfer:
        content = run.transfer[1]["content"]
        evaluations.append((f"{content['model']} on {content['data']['dataset']}", run.transfer[1]))
    return warnings + [f"{name}: {message}" for name, body in evaluations for message in body["content"]["warnings"]]
