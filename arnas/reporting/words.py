"""What the figures say and what they cannot say, in sentences computed from them."""

from collections.abc import Mapping
from typing import Any

from arnas.config import Retrain
from arnas.reporting.scores import ATTACKS, Run


def percent(share: float) -> str:
    """0.5123 as 51.2%."""
    return f"{100 * share:.1f}%"


def intensity(value: float) -> str:
    """8/255 for 0.03137...; another number as it is."""
    levels = 255 * value
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8.4 s, 3 min 20 s, 1 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def strongest(scores: Mapping[str, Any]) -> str | None:
    """The strongest white-box attack that was made; None without evaluations."""
    made = {attack for entry in scores["models"].values() for attack in entry if attack in ATTACKS}
    return next((attack for attack in ("autoattack", "pgd100", "pgd20", "fgsm") if attack in made), None)


def best(scores: Mapping[str, Any]) -> str | None:
    """Name of the model that withstands the strongest attack most often; None without evaluations."""
    attack = strongest(scores)
    names = [name for name, entry in scores["models"].items() if attack in entry]
    return max(names, key=lambda name: float(scores["models"][name][attack]["accuracy"]), default=None)


def claim(run: Run, scores: Mapping[str, Any]) -> str:
    """The headline: what the best model can do, on how many images of what, and what that leaves open."""
    name, attack = best(scores), strongest(scores)
    dataset = scores["data"]["dataset"]
    if name is None or attack is None:
        return f"No model has been evaluated on {dataset} yet; this page shows what there is."
    entry = scores["models"][name]
    clean, robust = entry["clean"], entry[attack]
    low, high = robust["interval"]
    radius = intensity(run.evaluations[name]["content"]["settings"]["epsilon"])
    same = "the same" if robust["total"] == clean["total"] else "the first"
    chance = 1 / len(scores["data"]["classes"])
    text = (
        f"{name} classifies {percent(clean['accuracy'])} of {clean['total']:,} {dataset} test images correctly, and "
        f"{percent(robust['accuracy'])} of {same} {robust['total']:,} when {ATTACKS[attack]} may change every pixel by up to "
        f"{radius} (95% interval {percent(low)} to {percent(high)}; guessing gives {percent(chance)})"
    )
    if low <= chance:
        text += ", which is no evidence of robustness"
    rivals = [
        other
        for other, figures in scores["models"].items()
        if other != name and attack in figures and figures[attack]["interval"][1] >= low
    ]
    if rivals:
        text += f". The interval overlaps with that of {' and '.join(rivals)}: which of them is the more robust is not settled here"
    return text + "."


def limits(run: Run, scores: Mapping[str, Any]) -> list[str]:
    """What the run can and cannot show, one sentence or two for each reason."""
    return [*_data(scores), *_intervals(scores), *_training(run), *_recipe(run), *_attacks(run, scores)]


def _data(scores: Mapping[str, Any]) -> list[str]:
    channels, height, width = scores["data"]["shape"]
    counts = scores["data"]["counts"]
    training = counts["weights"] + counts["architecture"]
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    text = f"The data are {colours} images of {height} x {width} pixels in {len(scores['data']['classes'])} classes, {training:,} of them to train on"
    if height * width < 32 * 32 or training < 20_000:
        text += "; figures from a data set this small do not tell how the same architecture does on a larger one"
    return [text + "."]


def _intervals(scores: Mapping[str, Any]) -> list[str]:
    attack = strongest(scores)
    found = [entry[attack] for entry in scores["models"].values() if attack in entry]
    if attack is None or not found:
        return []
    widest = max((max(high - s["accuracy"], s["accuracy"] - low), s["total"]) for s in found for low, high in [s["interval"]])
    return [
        f"With {widest[1]:,} images under {ATTACKS[attack]} an interval reaches up to {100 * widest[0]:.1f} points from its figure: "
        "smaller differences between models are not evidence."
    ]


def _training(run: Run) -> list[str]:
    if not run.models:
        return []
    seeds = sorted({body["content"]["settings"]["seed"] for body in run.models.values()})
    text = (
        f"The intervals cover the choice of test images only, not the chance in training: each model was trained once (seed "
        f"{', '.join(map(str, seeds))}), and how far another seed would move its figures was not measured."
    )
    if len(run.evaluations) > 1:
        text += f" The model named on top was picked by these test figures from {len(run.evaluations)}, which flatters it a little."
    return [text]


def _recipe(run: Run) -> list[str]:
    reference, lines = Retrain(), []
    for name, body in run.models.items():
        settings = body["content"]["settings"]
        unused = {"resnet18": ("channels", "layers")}.get(settings["architecture"], ("layers",) if settings["layout"] else ())
        smaller = [
            f"{settings[key]} {word} instead of {getattr(reference, key)}"
            for key, word in (("channels", "initial filters"), ("layers", "cells"), ("epochs", "epochs"))
            if settings[key] < getattr(reference, key) and key not in unused
        ]
        if smaller:
            lines.append(f"{name} has {', '.join(smaller)}")
    return [f"The training is scaled down from the published recipe: {'; '.join(lines)}."] if lines else []


def _attacks(run: Run, scores: Mapping[str, Any]) -> list[str]:
    if not run.evaluations:
        return []
    return [
        "A robust accuracy is an upper bound found by attacks, not a proof: a stronger attack can only lower it. "
        "It holds for changes within this linf ball and says nothing of other kinds of change."
    ]
