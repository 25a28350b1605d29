"""What the figures say and what they cannot say, in sentences computed from them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from arnas import config
from arnas.config import Retrain
from arnas.reporting.scores import ATTACKS, COLUMNS, Run, strongest

SIGNIFICANT = 0.05  # p values below it count as more than chance, after Holm's correction


def percent(share: float) -> str:
    """0.5123 as 51.2%."""
    return f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8.4 s, 3 min 20 s, 1 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def points(share: float) -> str:
    """A difference of accuracies, 0.0312 as +3.1."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def chance(p: float, related: bool = False) -> str:
    """A p value: 0.032, 1, or < 0.001; `related`, = 0.032."""
    return "< 0.001" if p < 0.001 else f"{'= ' * related}{p:.2g}"


def listing(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def titles(settings: Mapping[str, Any]) -> dict[str, str]:
    """What the columns of tables are called, given the settings of the white-box evaluation."""
    version = settings.get("autoattack_version", "standard")
    return COLUMNS | ({} if version == "standard" else {"autoattack": f"AutoAttack ({version})"})


def ball(settings: Mapping[str, Any]) -> str:
    """What an attack with these settings may do, after the word "may"."""
    norm, radius = settings.get("norm", "linf"), config.intensity(settings["epsilon"])
    if norm == "linf":
        return f"change every pixel by up to {radius}"
    return f"change an image by up to {radius} in the {norm} norm"


def shown(pair: Mapping[str, Any]) -> str | None:
    """Which of two is better, if their difference is more than chance; else None."""
    if pair["p_holm"] >= SIGNIFICANT:
        return None
    better: str = pair["first"] if pair["difference"] > 0 else pair["second"]
    return better


def comparisons(pairs: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The pairs with their attack's title and a verdict, those that show something first."""
    told = [{**pair, "title": names.get(pair["attack"], pair["attack"]), "verdict": _verdict(pair)} for pair in pairs]
    return sorted(told, key=lambda pair: (pair["p_holm"], pair["p"]))


def _verdict(pair: Mapping[str, Any]) -> str:
    better = shown(pair)
    return "not shown" if better is None else "first" if better == pair["first"] else "second"


def tally(pairs: Sequence[Mapping[str, Any]]) -> str:
    """How many comparisons show a difference, and by what test."""
    found, total = sum(shown(pair) is not None for pair in pairs), len(pairs)
    text = (
        f"{found or 'None'} of {total} comparisons {'shows' if found <= 1 else 'show'} a difference beyond chance "
        f"(McNemar's exact test; by Holm's correction even one false difference has a chance below {SIGNIFICANT:.0%})."
    )
    return text + " No difference means that none was found on these images, not that the two are equal."


def best(scores: Mapping[str, Any]) -> str | None:
    """Name of the model that withstands the strongest attack most often; None without evaluations."""
    attack = strongest(scores["models"])
    names = [name for name, entry in scores["models"].items() if attack in entry]
    return max(names, key=lambda name: float(scores["models"][name][attack]["accuracy"]), default=None)


def claim(run: Run, scores: Mapping[str, Any]) -> str:
    """The headline: what the best model can do, against what, on how many images of what."""
    name, attack = best(scores), strongest(scores["models"])
    dataset = scores["data"]["dataset"]
    if name is None or attack is None:
        return f"No model has been attacked on {dataset} yet; this page shows what there is."
    clean, robust = scores["models"][name]["clean"], scores["models"][name][attack]
    settings = run.evaluations[name]["content"]["settings"]
    same = "of them" if robust["total"] == clean["total"] else f"of the first {robust['total']:,}"
    return (
        f"{name} classifies {percent(clean['accuracy'])} of {clean['total']:,} {dataset} test images correctly, and "
        f"{percent(robust['accuracy'])} {same} when {titles(settings)[attack]} may {ball(settings)}."
    )


def qualification(scores: Mapping[str, Any]) -> str:
    """What must be said right after the claim: its interval, chance, and the models it cannot be told from."""
    name, attack = best(scores), strongest(scores["models"])
    if name is None or attack is None:
        return ""
    low, high = scores["models"][name][attack]["interval"]
    guessing = 1 / len(scores["data"]["classes"])
    text = f"The 95% interval of the latter is {percent(low)} to {percent(high)}; guessing gives {percent(guessing)}"
    text += ", so this is no evidence of robustness." if low <= guessing else "."
    rivals = [
        pair["second"] if pair["first"] == name else pair["first"]
        for pair in scores.get("pairs", [])
        if pair["attack"] == attack and name in (pair["first"], pair["second"]) and shown(pair) is None
    ]
    if rivals:
        text += (
            f" It was not shown to be better than {listing(rivals)} on the same images: "
            "which model is the most robust is not settled here."
        )
    return text


def limits(run: Run, scores: Mapping[str, Any]) -> list[str]:
    """What the run can and cannot show, one sentence or two for each reason."""
    return [
        *_data(scores),
        *_intervals(scores),
        *_training(run),
        *_adopted(run),
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
    return intervals(scores["models"], ATTACKS, "models")


def intervals(entries: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], what: str) -> list[str]:
    """How far chance in the choice of test images reaches, under the strongest attack."""
    attack = strongest(entries)
    found = [entry for entry in entries.values() if attack in entry]
    if attack is None or not found:
        return []
    reach, total = max(
        (max(score["interval"][1] - score["accuracy"], score["accuracy"] - score["interval"][0]), score["total"])
        for score in (entry[attack] for entry in found)
    )
    text = (
        f"With {total:,} images under {names[attack]} an interval reaches up to {100 * reach:.1f} points from its "
        f"figure: differences of that size between {what} may be chance."
    )
    if total < max(entry["clean"]["total"] for entry in found):
        text += " The columns rest on different numbers of images (below each figure), so compare down and not across."
    return [text]


def _training(run: Run) -> list[str]:
    if not run.evaluations:
        return []
    seeds = sorted({body["content"]["settings"]["seed"] for body in run.trained().values()})
    once = f"each model was trained once (seed {', '.join(map(str, seeds))}), and " if seeds else ""
    text = (
        f"The intervals cover the choice of test images only, not the chance in training: {once}how far another seed "
        "would move its figures was not measured."
    )
    if len(run.evaluations) > 1:
        text += (
            f" The model named on top was picked from {len(run.evaluations)} by these test figures, which flatter it."
        )
    return [text]


def _adopted(run: Run) -> list[str]:
    names = [name for name in run.models if name not in run.trained()]
    return [elsewhere(names)] if names else []


def elsewhere(names: Sequence[str]) -> str:
    """What is not known of networks that were adopted."""
    return (
        f"Trained elsewhere, and only evaluated here: {', '.join(names)}. On which images and against which attacks, "
        "this page does not know; test images among them would flatter its figures."
    )


def _recipe(run: Run) -> list[str]:
    reference = Retrain()
    smaller: dict[str, list[str]] = {}  # what is smaller: names of the models
    for name, body in run.trained().items():
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
    from arnas.space import genotype  # needs torch, which other words do not

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
        precision = (body["content"].get("settings") or {}).get("precision", "fp32")  # earlier versions had no other
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
    norms = {body["content"]["settings"].get("norm", "linf") for body in run.evaluations.values()}
    notes = {note: None for entry in scores["models"].values() for note in entry.get("notes", [])}
    return [upper_bound(" and ".join(sorted(norms))), *notes]


def upper_bound(norm: str) -> str:
    """What attacks cannot show."""
    return (
        "A robust accuracy is an upper bound found by attacks, not a proof: a stronger attack can only lower it. "
        f"It holds for changes within this {norm} ball and says nothing of other kinds of change."
    )
