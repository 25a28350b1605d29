"""The page of a study: what its variants have in common, and where they differ by more than chance."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from arnas.reporting import layouts, plots, render, words
from arnas.reporting.scores import each, front, strongest, violated
from arnas.space.layout import Layout

NOUNS = {  # what the variants of a study are: one, several
    "placement": ("layout", "layouts"),
    "comparison": ("architecture", "architectures"),
    "transfer": ("data set", "data sets"),
    "seeds": ("seed", "seeds"),
    "ablation": ("search", "searches"),
}


def page(study: Mapping[str, Any]) -> str:
    """The page as text; every figure is one of `study`, the content of study.json. Same study, same text."""
    one, many = NOUNS.get(study["study"], ("variant", "variants"))
    settings = study["settings"].get("whitebox", {})
    names = words.titles(settings)
    entries = {variant["name"]: _entry(variant) for variant in study["variants"]}
    attack = strongest(entries)
    alarms = violated(entries.items())
    told = [f"{variant['name']}: {text}" for variant in study["variants"] for text in variant.get("warnings", [])]
    warnings = dict.fromkeys([*study.get("warnings", []), *told])
    pairs = words.comparisons(study.get("pairs") or [], names)
    return render.page(
        "study.html.j2",
        files=render.downloads(
            f"arnas-{study['study']}",
            json.dumps(study, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            rows(study),
        ),
        title=f"ARNAS study: {study['study']}",
        what="study",
        study=study,
        noun=one,
        nouns=many,
        claim=claim(study),
        qualification=qualification(study),
        alarms=alarms,
        warnings=[warning for warning in warnings if warning not in alarms],
        limits=limits(study),
        entries=entries,
        attacks={key: title for key, title in names.items() if any(key in entry for entry in entries.values())},
        names=names,
        pairs=pairs,
        tally=words.tally(pairs),
        layouts=_layouts(study, entries, attack, names),
        **_figures(study, entries, attack, names),
        difference=_difference(study.get("kinds_differ")),
        agreement=_agreement(study.get("agreement")),
        settings=render.as_yaml(study["settings"]),
        versions=study["versions"],
    )


def rows(study: Mapping[str, Any]) -> Iterator[render.Row]:
    """Every score of the study: digest of its artifact, variant, data set, attack, score."""
    datasets = {variant["name"]: variant["dataset"] for variant in study["variants"]}
    for variant in study["variants"]:
        for attack, score in each(_entry(variant)):
            yield variant.get("evaluation_digest") or "", variant["name"], variant["dataset"], attack, score
    for source, row in (study.get("blackbox") or {}).items():
        for target, score in row.items():
            yield (
                study["digest"],
                target,
                datasets.get(target, ""),
                source if source == "square" else f"pgd on {source}",
                score,
            )


def claim(study: Mapping[str, Any]) -> str:
    """The headline. Over seeds it is a mean, never the best one; between variants only what the tests show."""
    one, many = NOUNS.get(study["study"], ("variant", "variants"))
    entries = {variant["name"]: _entry(variant) for variant in study["variants"]}
    mean = study.get("accuracy")
    attack = strongest({"all": mean} if mean else entries)  # a mean is over all that met an attack: all variants
    if attack is None:
        return f"None of the {len(entries)} {many} has been attacked yet; this page shows what there is."
    names = words.titles(study["settings"].get("whitebox", {}))
    if mean:
        clean, robust = mean["clean"], mean[attack]
        return (
            f"Over {clean['seeds']} {many if clean['seeds'] > 1 else one}, {_mean(clean)} of the test images are "
            f"classified correctly, and {_mean(robust)} under {names[attack]}."
        )
    attacked = {name: entry for name, entry in entries.items() if attack in entry}
    datasets = {variant["name"]: variant["dataset"] for variant in study["variants"]}
    if len({datasets[name] for name in attacked}) > 1:
        found = [
            f"{words.percent(entry['clean']['accuracy'])} clean and {words.percent(entry[attack]['accuracy'])} under "
            f"{names[attack]} on {name if datasets[name] in name else f'{datasets[name]} ({name})'}"
            for name, entry in attacked.items()
        ]
        if len(found) > 3:
            robust = [entry[attack]["accuracy"] for entry in attacked.values()]
            return (
                f"Trained anew on {len(found)} {many}, between {words.percent(min(robust))} and "
                f"{words.percent(max(robust))} of the test images withstand {names[attack]}; no ranking."
            )
        return f"Trained anew on each data set: {words.listing(found)}."
    return _ranking(study, attacked, attack, names[attack], one, many)


def _mean(spread: Mapping[str, Any]) -> str:
    text = words.percent(spread["mean"])
    return text if spread["spread"] is None else f"{text} ± {words.percent(spread['spread'])}"


def _ranking(study: Mapping[str, Any], entries: Mapping[str, Any], attack: str, title: str, one: str, many: str) -> str:
    """Which variant withstands the attack most often, as far as the paired tests tell them apart."""
    accuracy = {name: entry[attack]["accuracy"] for name, entry in entries.items()}
    leader = max(accuracy, key=lambda name: float(accuracy[name]))
    pairs = [pair for pair in study.get("pairs") or [] if pair["attack"] == attack]
    figure = f"{words.percent(accuracy[leader])} of {entries[leader][attack]['total']:,} test images"
    if len(accuracy) == 1:
        return f"{leader} classifies {figure} correctly under {title}."
    span = (
        f"Under {title} the {len(accuracy)} {many} keep between {words.percent(min(accuracy.values()))} and "
        f"{words.percent(max(accuracy.values()))} of the test images right"
    )
    if not pairs:
        return f"{span}; whether they differ was not tested."
    if not any(words.shown(pair) for pair in pairs):
        return f"{span}: no difference beyond chance was found between any two of them."
    against = {
        pair["second"] if pair["first"] == leader else pair["first"]: pair for pair in pairs if _has(pair, leader)
    }
    beaten = [name for name, pair in against.items() if words.shown(pair) == leader]
    if not beaten:
        return f"{span}; no {one} was shown to be the most robust."
    text = f"{leader} keeps {figure} right under {title}, more than "
    if len(beaten) == len(accuracy) - 1:
        return f"{text}every other {one}."
    text += words.listing(beaten) if len(beaten) <= 3 else f"{len(beaten)} of {len(accuracy) - 1} others"
    rest = [name for name in against if name not in beaten]
    if rest:
        text += f"; no difference from {words.listing(rest) if len(rest) <= 3 else f'{len(rest)} others'} was found"
    left = len(accuracy) - 1 - len(against)
    return f"{text}; {left} {'was' if left == 1 else 'were'} not compared with it." if left else f"{text}."


def _has(pair: Mapping[str, Any], name: str) -> bool:
    return name in (pair["first"], pair["second"])


def qualification(study: Mapping[str, Any]) -> str:
    """What must be said right after the claim."""
    if study.get("accuracy"):
        seeds = study["accuracy"]["clean"]["seeds"]
        if seeds == 1:
            return "A single seed tells nothing of the spread between seeds."
        text = "Figures are the mean and the sample standard deviation; no seed was picked."
        return text + (f" Of {seeds} seeds, the deviation itself is rough." if seeds < 5 else "")
    settings = study["settings"].get("whitebox", {})
    ball = f"Attacks may {words.ball(settings)}. " if "epsilon" in settings else ""
    tested = "Differences are tested on the same images, and corrected for their number. " if study.get("pairs") else ""
    return f"{ball}{tested}Each is one network: how far chance in its training moves its figures was not measured."


def limits(study: Mapping[str, Any]) -> list[str]:
    """What the study can and cannot show."""
    entries = {variant["name"]: _entry(variant) for variant in study["variants"]}
    settings = study["settings"].get("whitebox", {})
    sentences = words.intervals(entries, words.titles(settings), "networks")
    if study.get("accuracy"):
        sentences.append(
            "The test images are the same for all seeds: the spread is that of the method, and the choice of images "
            "adds what the intervals tell."
        )
    else:
        sentences.append(
            "Intervals and tests cover the choice of test images only, not the chance in training: a difference beyond "
            "chance here is one between these trained networks, and another seed may turn it round."
        )
    if len({variant["dataset"] for variant in study["variants"]}) > 1:
        sentences.append("Variants on different data sets saw different images: their figures are not to be ranked.")
    if entries and strongest(entries):
        sentences.append(words.upper_bound(settings.get("norm", "linf")))
    return sentences + list(dict.fromkeys(note for entry in entries.values() for note in entry.get("notes", [])))


def _entry(variant: Mapping[str, Any]) -> dict[str, Any]:
    """A variant as scores.json has its models."""
    keys = ("parameters", "macs", "corrupted", "corruptions", "curve", "checks", "notes", "autoattack_first")
    return {**variant["scores"], **{key: variant[key] for key in keys if variant.get(key) or key in keys[:2]}}


def _layouts(
    study: Mapping[str, Any], entries: Mapping[str, Any], attack: str | None, names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A row for each variant that has a layout, where these differ."""
    drawn = [variant for variant in study["variants"] if variant.get("layout")]
    if len({variant["layout"] for variant in drawn}) < 2:
        return []
    widest = max(width for variant in drawn for _, width in Layout.parse(variant["layout"]).cells)
    found = []
    for variant in drawn:
        entry = entries[variant["name"]]
        colours = {"clean": plots.SERIES[0], attack or "": plots.SERIES[1]}
        shown = [(key, colour) for key, colour in colours.items() if key in entry]
        told = [{"name": names[key], "colour": colour, "accuracy": entry[key]["accuracy"]} for key, colour in shown]
        found.append(
            {
                "name": variant["name"] if variant["name"] != variant["layout"] else "",
                "drawing": Markup(layouts.draw(variant["layout"], widest)),
                "dots": Markup(layouts.dots([(names[key], colour, entry[key]) for key, colour in shown])),
                "told": told,
            }
        )
    return found


def _figures(
    study: Mapping[str, Any], entries: Mapping[str, Any], attack: str | None, names: Mapping[str, str]
) -> dict[str, Any]:
    """Those of the plots that the study has data for; the others are None."""
    attacked = {name: entry for name, entry in entries.items() if attack in entry and "clean" in entry}
    several = attack is not None and len(attacked) > 1
    note = ""
    if len({variant["dataset"] for variant in study["variants"]}) > 1:
        note = "The points are of different test images, and so not to be ranked."
    elif study.get("accuracy"):
        note = "Each point is one seed: how far they lie apart is chance, and the best of them no better a method."
    joined = front(attacked, attack) if attack and not note else []
    curves = {name: entry["curve"] for name, entry in entries.items() if "curve" in entry}
    norm = study["settings"].get("whitebox", {}).get("norm", "linf")
    return {
        "scatter": Markup(plots.scatter(attacked, attack, names[attack], joined, None)) if attack and several else None,
        "front": joined,
        "note": note,
        "title_of_attack": names[attack] if attack else "",
        "curves": Markup(plots.curves(curves, norm)) if curves else None,
        "matrix": Markup(plots.matrix(study["blackbox"])) if study.get("blackbox") else None,
        "operations": Markup(plots.operations(study["operations"])) if study.get("operations") else None,
    }


def _difference(test: Mapping[str, Any] | None) -> str:
    if test is None:
        return "Whether the kinds of cells choose differently was not tested."
    verdict = (
        "The kinds of cells choose different operations"
        if test["p"] < words.SIGNIFICANT
        else "That the kinds of cells choose different operations is not shown"
    )
    return f"{verdict}: p {words.chance(test['p'], True)} ({test['test']}; {test['permutations']:,} permutations)."


def _agreement(agreement: Mapping[str, float | None] | None) -> str:
    told = [
        f"{words.percent(share)} in the {kind} cell" for kind, share in (agreement or {}).items() if share is not None
    ]
    return (
        f"Two genotypes share, on average, these edges, operation and input alike: {words.listing(told)}."
        if told
        else ""
    )
