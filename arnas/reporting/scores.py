"""The figures of a run: the parts that they come from, and what the one JSON document, scores.json, tells of them."""

from collections.abc import Iterable, Iterator, Mapping
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
COLUMNS = ATTACKS | {"corrupted": "corruptions"}  # of tables; what noise, blur, low contrast and JPEG leave, on average

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
    outcomes: Mapping[str, Mapping[str, NDArray[np.generic]]]  # outcomes.safetensors of each evaluation
    examples: Mapping[str, Mapping[str, NDArray[np.generic]]]  # examples.safetensors of each evaluation
    blackbox: Body | None
    blackbox_outcomes: Mapping[str, NDArray[np.generic]]  # its outcomes.safetensors
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


def strongest(entries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The strongest white-box attack that any of the models met; None without evaluations."""
    made = {attack for entry in entries.values() for attack in entry}
    return next((attack for attack in ("autoattack", "pgd100", "pgd20", "fgsm") if attack in made), None)


def front(entries: Mapping[str, Mapping[str, Any]], attack: str) -> list[str]:
    """The Pareto front of clean and robust accuracy, from the most robust to the most accurate.

    A model is on it unless another is at least as good in both and better in one.
    """
    points = {
        name: (float(entry["clean"]["accuracy"]), float(entry[attack]["accuracy"])) for name, entry in entries.items()
    }
    kept = [
        name
        for name, (clean, robust) in points.items()
        if not any(x >= clean and y >= robust and (x, y) != (clean, robust) for x, y in points.values())
    ]
    return sorted(kept, key=lambda name: points[name])


def rows(scores: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, Mapping[str, Any]]]:
    """Every score of the document: digest of its artifact, model, data set, attack, score."""
    dataset, digests = scores["data"]["dataset"], scores["digests"]
    for name, entry in scores["models"].items():
        for attack, score in each(entry):
            digest = digests["blackbox"] if attack == "square" else digests["evaluations"][name]
            yield digest, name, dataset, attack, score
    for source, row in scores.get("blackbox", {}).items():
        for target, score in row.items():
            yield digests["blackbox"], target, dataset, f"pgd on {source}", score
    for other, models in scores.get("transfer", {}).items():
        for name, entry in models.items():
            for attack, score in each(entry):
                yield digests["transfer"]["evaluation"], name, other, attack, score


def each(entry: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The scores of one model, by attack; radii and severities are part of the attack's name."""
    yield from ((attack, entry[attack]) for attack in COLUMNS if attack in entry)
    yield from ((f"pgd20 at epsilon {point['epsilon']:.6g}", point) for point in entry.get("curve", []))
    for corruption, severities in entry.get("corruptions", {}).items():
        yield from ((f"{corruption} {severity}", score) for severity, score in severities.items())


def violations(scores: Mapping[str, Any]) -> list[str]:
    """The sentences of those checks that do not hold, under their models' names."""
    named = list(scores["models"].items())
    for dataset, models in scores.get("transfer", {}).items():
        named += [(f"{name} on {dataset}", entry) for name, entry in models.items()]
    return violated(named)


def violated(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The sentences of the checks that do not hold, under the names of their entries."""
    return [
        f"{name}: {check['sentence']}"
        for name, entry in entries
        for check in entry.get("checks", [])
        if not check["holds"]
    ]
