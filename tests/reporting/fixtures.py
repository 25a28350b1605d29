"""A small run's artifacts of every kind, written through arnas.artifacts, with plausible made-up figures."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from statsmodels.stats.proportion import proportion_confint

from arnas import artifacts
from arnas.config import Settings, Whitebox, validate
from arnas.evaluation.statistics import spread
from arnas.reporting.collect import compare
from arnas.space.operations import OPERATIONS

CLASSES = [str(digit) for digit in range(10)]
KINDS = ("accurate", "reduce", "robust")
ORIGIN = {
    "versions": {"arnas": "0.1.0", "python": "3.11.9", "torch": "2.15.0", "numpy": "2.4.6"},
    "device": "cpu",
    "seconds": 74.31,
    "peak_memory_mib": 812,
}
PUBLISHED = {  # the genotype found on CIFAR-10 by the paper's authors
    "accurate": "skip 0, skip 1 | sep5 0, sep3 1 | sep5 3, sep3 1 | sep5 4, skip 0",
    "reduce": "avg 1, avg 0 | dil5 2, avg 0 | dil5 3, dil5 2 | dil5 4, dil5 3",
    "robust": "dil5 0, dil5 1 | dil5 1, dil5 2 | dil3 3, dil5 2 | dil3 4, dil3 3",
}
SHORT = {
    "avg": "avg_pool_3x3",
    "skip": "skip_connect",
    "sep3": "sep_conv_3x3",
    "sep5": "sep_conv_5x5",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
}
CELLS: dict[str, Any] = {
    kind: [[[SHORT[word.split()[0]], int(word.split()[1])] for word in node.split(", ")] for node in text.split(" | ")]
    for kind, text in PUBLISHED.items()
}
CHANCES = {  # of standing, per model and attack
    "searched": {"clean": 0.93, "fgsm": 0.74, "pgd20": 0.66, "pgd100": 0.655, "autoattack": 0.62, "square": 0.70},
    "resnet18": {"clean": 0.95, "fgsm": 0.72, "pgd20": 0.64, "pgd100": 0.64, "autoattack": 0.61, "square": 0.69},
    "natural": {"clean": 0.985, "fgsm": 0.31, "pgd20": 0.03, "pgd100": 0.02, "autoattack": 0.0, "square": 0.08},
}
MASKED = "pgd20 leaves 11 of 360 samples right, fgsm, which should be weaker, 9: gradients may be masked."
PARTS = ["apgd-ce", "apgd-t", "fab-t", "square"]
CORRUPTED = 1 - 0.04 * np.arange(1, 6) * np.array(
    [[1.0], [2], [3], [0.5]]
)  # of clean accuracy, [corruptions, severities]
RECIPES = {"resnet18": {"architecture": "resnet18"}, "natural": {"loss": "natural"}}


@dataclass(frozen=True)
class Written:
    """Where the artifacts lie."""

    settings: Settings
    images: Path
    supernet: Path
    genotype: Path
    models: list[Path]
    evaluations: list[Path]
    blackbox: Path
    transfer: tuple[Path, Path]

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """Of report.run, changed."""
        return vars(self) | changes


def write_run(
    root: Path, seed: int = 0, attacks: tuple[str, ...] = ("fgsm", "pgd20", "pgd100", "autoattack")
) -> Written:
    """Write a run of three models on digits under `root`; each evaluation has the `attacks`."""
    random = np.random.default_rng(seed)
    settings = _settings()
    images = image_set(root / "images", random, "digits", CLASSES)
    net = supernet(root / "supernet", random, artifacts.read(images, "image_set")["digest"])
    genotype = root / "genotype.json"
    body = {"schema": "arnas.genotype/1", "name": "searched", "layout": "A1 D2 A2 D2 R2", "cells": CELLS}
    genotype.write_text(json.dumps(body | {"digest": artifacts.digest(body), "origin": {"supernet": "0" * 64}}))
    models = [model(root / f"model-{index}", random, name, settings, images) for index, name in enumerate(CHANCES)]
    evaluations = [evaluation(root / f"evaluation-{path.name}", random, path, images, attacks) for path in models]
    black = blackbox(root / "blackbox", random, models, images, settings)
    letters = image_set(root / "letters", random, "glyphs", list("ABCDEFGHIJ"))
    moved = model(root / "moved", random, next(iter(CHANCES)), settings, letters)
    return Written(
        settings,
        images,
        net,
        genotype,
        models,
        evaluations,
        black,
        (moved, evaluation(root / "moved-evaluation", random, moved, letters, attacks)),
    )


def image_set(output: Path, random: np.random.Generator, dataset: str, classes: list[str]) -> Path:
    counts = {"weights": 600, "architecture": 600, "holdout": 120, "test": 360}
    content = {
        "settings": {"seed": 0, "dataset": dataset},
        "dataset": dataset,
        "classes": classes,
        "shape": [1, 8, 8],
        "counts": counts,
    }
    pixels = random.integers(0, 256, (64, 1, 8, 8), dtype=np.uint8)
    return _write(output, "image_set", content, {"images": {"images": pixels, "labels": np.arange(64) % 10}})


def supernet(output: Path, random: np.random.Generator, images: str, epochs: int = 6, steps: int = 18) -> Path:
    total = epochs * steps
    fall = np.exp(-np.arange(total) / total * 2)
    noise = lambda scale: random.normal(0, scale, total)  # noqa: E731
    columns = {
        "epoch": np.repeat(np.arange(epochs), steps),
        "step": np.tile(np.arange(steps), epochs),
        "natural_loss": 0.3 + 2 * fall + noise(0.05),
        "adversarial_loss": 0.9 + 1.6 * fall + noise(0.06),
        "train_loss": 0.8 + 1.7 * fall + noise(0.06),
        "gamma": np.clip(0.2 + 0.2 * fall + noise(0.15), 0, 1),
        "natural_norm": np.exp(noise(0.3)) * 0.02 * fall,
        "adversarial_norm": np.exp(noise(0.3)) * 0.04 * fall,
    }
    logits = np.zeros((3, 14, 7))
    record = []
    for epoch in range(epochs):
        logits += random.normal(0, 0.06, logits.shape) + 0.03 * random.normal(0, 1, (3, 1, 7))
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        entropy = -(weights * np.log(weights)).sum(-1).mean(-1)
        record.append(
            {
                "epoch": epoch,
                "genotype": CELLS,
                "entropy": dict(zip(KINDS, entropy.tolist(), strict=True)),
                "skips": dict(zip(KINDS, random.integers(0, 5, 3).tolist(), strict=True)),
                "weights": dict(zip(KINDS, weights.tolist(), strict=True)),
            }
        )
    history = {"columns": list(columns), "steps": np.stack(list(columns.values()), 1).tolist(), "epochs": record}
    content = {
        "settings": _settings().search.model_dump(),
        "images": images,
        "layout": "A1 D2 A2 D2 R2",
        "image_shape": [1, 8, 8],
        "classes": 10,
        "genotype": CELLS,
        "collapse": [
            "the accurate cell has 4 skip connections after epoch 5; fewer epochs or more regularisation may help"
        ],
    }
    return _write(output, "supernet", content, {"supernet": {"alpha": logits.astype(np.float32)}}, history)


def model(
    output: Path, random: np.random.Generator, name: str, settings: Settings, images: Path, epochs: int = 12
) -> Path:
    chance, set_ = CHANCES[name], artifacts.read(images, "image_set")
    rise = 1 - np.exp(-np.arange(1, epochs + 1) / epochs * 4)
    record = [
        {
            "epoch": epoch,
            "learning_rate": 0.1 * (1 - epoch / epochs),
            "train_loss": 2.3 - 1.5 * float(rise[epoch]),
            "train_accuracy": 0.1 + (chance["pgd20"] - 0.05) * float(rise[epoch]),
            "clean": chance["clean"] * float(rise[epoch]),
            "robust": max(
                0.0, chance["pgd20"] * float(rise[epoch]) + random.normal(0, 0.02) - 0.004 * max(0, epoch - 8) ** 2
            ),
        }
        for epoch in range(epochs)
    ]
    pick = lambda entry: {key: entry[key] for key in ("epoch", "clean", "robust")}  # noqa: E731
    content = {
        "name": name,
        "network": {"architecture": name} | ({} if name == "resnet18" else {"layout": "A1 D2 A2 D2 R2"}),
        "settings": settings.recipe(name).model_dump(),
        "images": set_["digest"],
        "data": {key: set_["content"][key] for key in ("dataset", "classes", "shape")},
        "parameters": 698_122 if name == "resnet18" else 152_634,
        "macs": 8_960_000 if name == "resnet18" else 3_120_000,
        "selection": {"best": pick(max(record, key=lambda entry: entry["robust"])), "last": pick(record[-1])},
    }
    weights = {"w": random.normal(size=3).astype(np.float32)}
    return _write(output, "model", content, {"best": weights, "last": weights}, {"epochs": record})


def evaluation(output: Path, random: np.random.Generator, path: Path, images: Path, attacks: tuple[str, ...]) -> Path:
    body, set_ = artifacts.read(path, "model"), artifacts.read(images, "image_set")
    name, settings = body["content"]["name"], _settings().whitebox
    luck = random.random(360)  # one number an image, so that the ladder of attacks holds
    totals = {"clean": 360, "autoattack": 200}
    outcomes = {attack: luck[: totals.get(attack, 360)] < CHANCES[name][attack] for attack in ("clean", *attacks)}
    withstood = {attack: right.copy() for attack, right in outcomes.items()}
    if "autoattack" in outcomes:
        first = np.where(outcomes["autoattack"], -1, random.choice(4, 200, p=[0.8, 0.18, 0.015, 0.005]))
        outcomes["autoattack_first"] = np.where(outcomes["clean"][:200], first, -2).astype(np.int8)
    outcomes["corruptions"] = _corrupted(luck, CHANCES[name]["clean"])
    masked = name == "natural"
    content = {
        "model": name,
        "model_digest": body["digest"],
        "images": set_["digest"],
        "data": body["content"]["data"],
        "settings": settings.model_dump(mode="json"),
        "parameters": body["content"]["parameters"],
        "macs": body["content"]["macs"],
        "scores": {attack: score(outcome) for attack, outcome in withstood.items()},
        "autoattack_parts": PARTS if "autoattack" in outcomes else [],
        **_findings(luck, CHANCES[name]["clean"], masked),
        "warnings": [MASKED] if masked else [],
    }
    k = 6
    clean = (np.kron(random.random((k, 1, 4, 4)), np.ones((1, 1, 2, 2)))).astype(np.float32)
    step = random.choice([-1.0, -0.5, 0.0, 0.5, 1.0], clean.shape) * settings.epsilon
    examples = {
        "images": clean,
        "adversarial": (clean + step).clip(0, 1).astype(np.float32),
        "labels": np.arange(k),
        "clean_prediction": np.arange(k),
        "adversarial_prediction": (np.arange(k) + (np.arange(k) % 3 > 0)) % 10,
    }
    return _write(output, "evaluation", content, {"outcomes": outcomes, "examples": examples})


def _corrupted(luck: np.ndarray, clean: float) -> np.ndarray:
    """Which images are right under each corruption and severity, bool [n, corruptions, severities]."""
    return luck[:120, None, None] < clean * CORRUPTED


def _findings(luck: np.ndarray, clean: float, masked: bool) -> dict[str, Any]:
    """Curve, corruptions and checks of a model of that clean accuracy."""
    corrupted = _corrupted(luck, clean)
    told = [
        ("ladder", not masked, MASKED if masked else "fgsm leaves 266 of 360, clean 335."),
        ("unbounded epsilon", True, "PGD-20 leaves 0 of 360 samples right at epsilon 1."),
    ]
    return {
        "curve": [
            {"epsilon": epsilon, **score(luck < clean * (not masked) * max(0, 1 - 10 * epsilon))}
            for epsilon in (0.0, *(2**power / 255 for power in range(1, 6)))
        ],
        "corruptions": {
            corruption: {str(severity + 1): score(corrupted[:, index, severity]) for severity in range(5)}
            for index, corruption in enumerate(("noise", "blur", "contrast", "jpeg"))
        },
        "corrupted": score(corrupted.ravel()),
        "checks": [{"check": check, "holds": holds, "sentence": sentence} for check, holds, sentence in told],
        "notes": [],
    }


def blackbox(output: Path, random: np.random.Generator, models: list[Path], images: Path, settings: Settings) -> Path:
    bodies = {body["content"]["name"]: body for body in (artifacts.read(path, "model") for path in models)}
    outcomes = {
        f"transfer/{source}/{target}": random.random(360)
        < (CHANCES[target]["pgd20"] if source == target else CHANCES[target]["clean"] * 0.9)
        for source in bodies
        for target in bodies
    }
    matrix = {
        source: {target: score(outcomes[f"transfer/{source}/{target}"]) for target in bodies} for source in bodies
    }
    content = {
        "models": list(bodies),
        "settings": settings.blackbox.model_dump(),
        "images": artifacts.read(images, "image_set")["digest"],
        "blackbox": matrix,
        "square": {name: score(random.random(100) < CHANCES[name]["square"]) for name in bodies},
        "model_digests": {name: body["digest"] for name, body in bodies.items()},
    }
    return _write(output, "blackbox", content, {"outcomes": outcomes})


STUDIES: dict[str, list[dict[str, Any]]] = {  # variants of each study
    "placement": [
        {"name": layout, "retrain.layout": layout}
        for layout in (
            "A1 A1 D2 A2 A2 D2 R2 R2", "R1 R1 D2 A2 A2 D2 A2 A2", "A1 A1 D2 R2 R2 D4 R4 R4", "A1 A1 D1 A1 A1 D1 A1 A1"
        )
    ],
    "comparison": [{"name": name, "retrain.architecture": name} for name in ("searched", "resnet18", "wrn-28-10")],
    "transfer": [{"name": name, "prepare.dataset": name} for name in ("digits", "glyphs")],
    "seeds": [{"name": f"seed {seed}", "seed": seed} for seed in range(4)],
    "ablation": [
        {"name": name, "search.combination": name} for name in ("natural", "adversarial", "sum", "min-norm", "finite")
    ],
}  # fmt: skip


def study(kind: str, seed: int = 0, total: int = 400) -> dict[str, Any]:
    """A study.json of made-up outcomes; the second variant of each but `seeds` is weaker beyond chance.

    The last one violates a check.
    """
    random = np.random.default_rng(seed)
    variants, outcomes = [], {}
    for index, changes in enumerate(STUDIES[kind]):
        chances = {"clean": 0.93 - 0.01 * index, "pgd20": 0.6, "autoattack": 0.57}
        worse = 0.2 * (index == 1 and kind != "seeds")
        luck, name = random.random(total), changes["name"]
        outcomes[name] = {attack: luck < chance - worse for attack, chance in chances.items()}
        variants.append(
            {
                "name": name,
                "changes": {key: value for key, value in changes.items() if key != "name"},
                "dataset": name if kind == "transfer" else "digits",
                "architecture": name if name in ("resnet18", "wrn-28-10") else "genotype",
                "layout": changes.get("retrain.layout", "A1 D2 A2 D2 R2" if kind != "comparison" else None),
                "cells": CELLS,
                "parameters": 152_634 + 1000 * index,
                "macs": 3_120_000 + 5000 * index,
                "selection": None,
                "scores": {attack: score(right) for attack, right in outcomes[name].items()},
                "warnings": [MASKED] if index == len(STUDIES[kind]) - 1 else [],
                "genotype": None,
                "model_digest": f"{index:064x}",
                "evaluation_digest": f"{index + 100:064x}",
                "autoattack_first": {part: 10 * (4 - place) + index for place, part in enumerate(PARTS)},
                **_findings(luck, chances["clean"] - worse, index == len(STUDIES[kind]) - 1),
            }
        )
    searched = kind == "seeds"
    return {
        "schema": "arnas.study/1",
        "study": kind,
        "digest": "f" * 64,
        "variants": variants,
        "accuracy": {
            attack: spread([variant["scores"][attack]["accuracy"] for variant in variants])
            for attack in variants[0]["scores"]
        }
        if kind == "seeds"
        else None,
        "pairs": compare(outcomes, ["clean", "autoattack"]) if kind not in ("transfer", "seeds") else [],
        "operations": _operations(random, 8 * len(variants)) if searched else None,
        "kinds_differ": {"test": "permutation of cell kinds", "statistic": 61.2, "p": 0.0004, "permutations": 10_000}
        if searched
        else None,
        "agreement": {kind: 0.21 for kind in KINDS} if searched else None,
        "blackbox": {source: {target: score(random.random(200) < 0.7) for target in outcomes} for source in outcomes}
        if kind == "comparison"
        else None,
        "settings": _settings().model_dump(mode="json"),
        "versions": {"torch": "2.15.0"},
        "warnings": ["seed 2 of the search collapsed: 5 skip connections in the accurate cell"] if searched else [],
    }


def _operations(random: np.random.Generator, edges: int) -> dict[str, Any]:
    found = {}
    for kind in KINDS:
        counts = random.multinomial(edges, random.dirichlet(np.ones(len(OPERATIONS))))
        entries = [score(np.arange(edges) < count) for count in counts]
        found[kind] = {
            name: {"count": int(count), "edges": edges, "share": entry["accuracy"], "interval": entry["interval"]}
            for name, count, entry in zip(OPERATIONS, counts, entries, strict=True)
        }
    return found


def score(outcomes: Any) -> dict[str, Any]:
    correct, total = int(np.sum(outcomes)), len(outcomes)
    low, high = proportion_confint(correct, total, method="wilson")
    return {"correct": correct, "total": total, "accuracy": correct / total, "interval": [float(low), float(high)]}


def _settings() -> Settings:
    whitebox = Whitebox(images=360, autoattack_images=200)
    values = {
        "prepare": {"dataset": "digits", "path": None},
        "search": {"channels": 8, "layers": 5, "epochs": 6},
        "retrain": {"channels": 8, "layers": 5, "epochs": 12},
        "models": {name: RECIPES.get(name, {}) for name in CHANCES},
        "whitebox": whitebox.model_dump(),
        "blackbox": {"images": 360, "square_images": 100},
        "transfer": {"dataset": "glyphs"},
    }
    return validate(Settings, values, "the fixture")


def _write(
    output: Path, kind: str, content: dict[str, Any], tensors: dict[str, dict[str, Any]], history: Any = None
) -> Path:
    with artifacts.publish(output) as scratch:
        scratch.mkdir()
        for name, arrays in tensors.items():
            save_file(
                {key: np.ascontiguousarray(array) for key, array in arrays.items()}, scratch / f"{name}.safetensors"
            )
        if history is not None:
            (scratch / "history.json").write_text(json.dumps(history))
        artifacts.write(scratch, kind, content, ORIGIN)
    return output
