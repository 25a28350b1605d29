"""What the figures say and what they cannot say, in sentences computed from them."""

from collections.abc import Mapping
from typing import Any

from arnas import config
from arnas.config import Retrain
from arnas.reporting.scores import ATTACKS, Run
from arnas.space import genotype


def percent(share: float) -> str:
    """0.5123 as 51.2%."""
    return f"{100 * share:.1f}%"


def intensity(value: float) -> str:
    """8/255 for 0.03137...; a number that is no multiple of 1/255 as it is."""
    levels = round(255 * value)
    return f"{levels}/255" if levels and levels / 255 == value else f"{value:.4g}"


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
    """The headline: what the best model can do, against what, on how many images of what."""
    name, attack = best(scores), strongest(scores)
    dataset = scores["data"]["dataset"]
    if name is None or attack is None:
        return f"No model has been attacked on {dataset} yet; this page shows what there is."
    clean, robust = scores["models"][name]["clean"], scores["models"][name][attack]
    radius = intensity(run.evaluations[name]["content"]["settings"]["epsilon"])
    same = "of them" if robust["total"] == clean["total"] else f"of the first {robust['total']:,}"
    return (
        f"{name} classifies {percent(clean['accuracy'])} of {clean['total']:,} {dataset} test images correctly, and "
        f"{percent(robust['accuracy'])} {same} when {ATTACKS[attack]} may change every pixel by up to {radius}."
    )


def qualification(scores: Mapping[str, Any]) -> str:
    """What must be said right after the claim: its interval, chance, and the models it cannot be told from."""
    name, attack = best(scores), strongest(scores)
    if name is None or attack is None:
        return ""
    low, high = scores["models"][name][attack]["interval"]
    chance = 1 / len(scores["data"]["classes"])
    text = f"The 95% interval of the latter is {percent(low)} to {percent(high)}; guessing gives {percent(chance)}"
    text += ", so this is no evidence of robustness." if low <= chance else "."
    rivals = [
        other
        for other, entry in scores["models"].items()
        if other != name and attack in entry and entry[attack]["interval"][1] >= low
    ]
    if rivals:
        text += f" It overlaps with that of {' and '.join(rivals)}: which model is the most robust is not settled here."
    return text


def limits(run: Run, scores: Mapping[str, Any]) -> list[str]:
    """What the run can and cannot show, one sentence or two for each reason."""
    return [
        *_data(scores),
        *_intervals(scores),
        *_training(run),
        *_recipe(run),
        *_precision(run),
        *_attacks(run, scores),
    ]


def _data(scores: Mapping[str, Any]) -> list[str]:
    channels, height, width = scores["data"]["shape"]
    counts = scores["data"]["counts"]
    training = counts["weights"] + counts["architecture"]
    colours = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    classes = len(scores["data"]["classes"])
    text = f"The data are {colours} images of {height} x {width} pixels in {classes} classes, {training:,} to train on"
    if height * width < 32 * 32 or training < 20_000:
        text += "; figures from a data set this small do not tell how the same architecture does on a larger one"
    return [text + "."]


def _intervals(scores: Mapping[str, Any]) -> list[str]:
    attack = strongest(scores)
    found = [entry[attack] for entry in scores["models"].values() if attack in entry]
    if attack is None or not found:
        return []
    reach, total = max(
        (max(score["interval"][1] - score["accuracy"], score["accuracy"] - score["interval"][0]), score["total"])
        for score in found
    )
    text = (
        f"With {total:,} images under {ATTACKS[attack]} an interval reaches up to {100 * reach:.1f} points from its "
        "figure: differences of that size between models may be chance."
    )
    if total < max(entry["clean"]["total"] for entry in scores["models"].values() if attack in entry):
        text += " The columns rest on different numbers of images (below each figure), so compare down and not across."
    return [text]


def _training(run: Run) -> list[str]:
    if not run.evaluations:
        return []
    seeds = sorted({body["content"]["settings"]["seed"] for body in run.models.values()})
    text = (
        "The intervals cover the choice of test images only, not the chance in training: each model was trained once "
        f"(seed {', '.join(map(str, seeds))}), and how far another seed would move its figures was not measured."
    )
    if len(run.evaluations) > 1:
        text += (
            f" The model named on top was picked from {len(run.evaluations)} by these test figures, which flatter it."
        )
    return [text]


def _recipe(run: Run) -> list[str]:
    reference = Retrain()
    smaller: dict[str, list[str]] = {}  # what is smaller: names of the models
    for name, body in run.models.items():
        settings, layout = body["content"]["settings"], body["content"]["network"].get("layout")
        sizes = [("epochs", settings["epochs"], reference.epochs)]
        sizes.append(("initial filters", settings["channels"], _published_channels(settings)))
        if layout:  # other architectures have no cells
            sizes.append(("cells", len(layout.split()), reference.layers))
        words = [f"{size} {what} instead of {most}" for what, size, most in sizes if size and size < most]
        if words:
            smaller.setdefault(", ".join(words), []).append(name)
    lines = [f"{words} ({', '.join(names)})" for words, names in smaller.items()]
    return [f"The training is scaled down from the published recipe: {'; '.join(lines)}."] if lines else []


def _published_channels(settings: Mapping[str, Any]) -> int:
    architecture = settings.get("architecture", "searched")
    if architecture in config.genotypes():
        return genotype.channels(genotype.load(architecture)[1])
    return config.RIVALS.get(architecture, config.CHANNELS)


def _precision(run: Run) -> list[str]:
    models = dict(run.models)
    if run.transfer:
        models[f"{run.transfer[0]['content']['name']} (transferred)"] = run.transfer[0]
    found: dict[str, list[str]] = {}  # precision: names of the models
    for name, body in models.items():
        precision = body["content"]["settings"].get("precision", "fp32")  # earlier versions had no other
        if precision != "fp32":
            found.setdefault(precision, []).append(name)
    return [
        f"Not trained in exact arithmetic but in {precision}: {', '.join(names)}. "
        "The hold-out that selects the epoch, and the attacks that are reported, are true fp32."
        for precision, names in found.items()
    ]


def _attacks(run: Run, scores: Mapping[str, Any]) -> list[str]:
    if not run.evaluations:
        return []
    return [
        "A robust accuracy is an upper bound found by attacks, not a proof: a stronger attack can only lower it. "
        "It holds for changes within this linf ball and says nothing of other kinds of change."
    ]
