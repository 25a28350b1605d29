"""The studies: what each of them varies, and how its variants are told. What KFP needs is in pipelines/study.py."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from arnas import config, objects
from arnas.errors import InvalidInput

Variant = dict[str, Any]  # its name, and changes of settings by dotted keys

_SEARCHES: dict[str, Variant] = {
    "as published": {},  # min-norm, lambda 0.1, finite differences; what the others are compared with
    "natural only": {"search.combination": "natural"},
    "adversarial only": {"search.combination": "adversarial"},
    "weighted sum": {"search.combination": "sum"},
    "exact hypergradient": {"search.hypergradient": "exact"},
    "first-order hypergradient": {"search.hypergradient": "first_order"},
    "lambda 0.01": {"search.adversarial_weight": 0.01},
    "lambda 1": {"search.adversarial_weight": 1.0},
}
_LAYOUTS = (  # of eight cells: the paper's, others of its cells in other places, and other filters
    "A1 A1 D2 A2 A2 D2 R2 R2",
    "R1 R1 D2 R2 R2 D2 A2 A2",
    "A1 A1 D2 A2 A2 D2 A2 A2",
    "R1 R1 D2 R2 R2 D2 R2 R2",
    "A1 A1 D2 A2 A2 D4 R4 R4",
)


@dataclass(frozen=True)
class Study:
    """A study: a loop over variants, and what is collected of them.

    Args:
        sentence: What it does.
        values: What its values are, in words; "" where it takes none.
        variants: Those where nobody says others.
        defaults: Settings that all variants have where nobody sets them.
        searches: Whether each variant is searched; otherwise all have the settings' genotype.
        prepares: Whether each variant has a data set of its own.
        blackbox: Whether the networks are attacked without sight of them, too.
    """

    sentence: str
    values: str
    variants: Sequence[Variant]
    defaults: Mapping[str, Any]
    searches: bool = False
    prepares: bool = False
    blackbox: bool = False


def _layout(text: str) -> Variant:
    layout = " ".join(text.split())
    if not re.fullmatch(config.LAYOUT, layout):
        raise InvalidInput(
            f"{text!r} is no layout; write cells such as 'A1 D2 R2': A (accurate), R (robust) or D (reduce), and a "
            "width in multiples of C."
        )
    return {"name": layout, "retrain.layout": layout}


def _architecture(text: str) -> Variant:
    name = Path(text).name.removesuffix(".json") if Path(text).is_file() or objects.is_place(text) else text
    return {"name": name, "retrain.architecture": _absolute(text)}


def _dataset(text: str) -> Variant:
    dataset, _, path = text.partition("=")
    variant = {"name": dataset, "prepare.dataset": dataset} | ({"prepare.path": _absolute(path)} if path else {})
    # the cutout of CIFAR-10's recipe would cover the bundled images of 8 and 16 pixels
    return variant | ({"prepare.image_size": 32} if dataset in ("digits", "glyphs") else {})


def _seed(text: str) -> Variant:
    if not text.isdecimal():
        raise InvalidInput(f"{text!r} is no seed; give 0, 1, 2 and so on.")
    return {"name": f"seed {int(text)}", "seed": int(text)}


def _absolute(place: str) -> str:
    """A file or folder of this machine, as every process finds it; anything else as it is."""
    there = Path(place).expanduser()
    return str(there.resolve()) if not objects.is_place(place) and there.exists() else place


_READERS = {"placement": _layout, "comparison": _architecture, "transfer": _dataset, "seeds": _seed}
_PUBLISHED = {"retrain.architecture": "arnas-cifar10"}

STUDIES = {
    "placement": Study(
        sentence="Train and attack one genotype in several layouts: which cells stand where, and how wide they are.",
        values="layouts, such as 'A1 A2 R2 R4' or 'A1 D2 R2', each taken as it is written: resolution is halved where "
        "a D stands, and nowhere else",
        variants=[_layout(text) for text in _LAYOUTS],
        # the auxiliary head stands at the last reduction, which is elsewhere in each layout, or nowhere
        defaults=_PUBLISHED | {"retrain.auxiliary_weight": 0.0},
    ),
    "comparison": Study(
        sentence="Train and attack several architectures under one recipe, each also with the others' examples.",
        values="architectures: names, genotype files, or s3://...",
        variants=[_architecture(name) for name in ("arnas-cifar10", "resnet18")],
        defaults={},
        blackbox=True,
    ),
    "transfer": Study(
        sentence="Train and attack one genotype on several data sets.",
        values="data sets, such as digits or cifar10=PATH",
        variants=[_dataset(name) for name in ("digits", "glyphs")],
        defaults=_PUBLISHED,
        prepares=True,
    ),
    "seeds": Study(
        sentence="Search, train and attack once for each seed, on one split of the data: mean, spread, operations.",
        values="seeds, such as 0 1 2",
        variants=[_seed(str(seed)) for seed in range(4)],
        defaults={},
        searches=True,
    ),
    "ablation": Study(
        sentence="Search, train and attack with parts of the search replaced: objectives, hypergradient, lambda.",
        values="",
        variants=[{"name": name, **changes} for name, changes in _SEARCHES.items()],
        defaults={},
        searches=True,
    ),
}


def told(name: str, values: Sequence[str], count: int | None = None, file: str | None = None) -> Any:
    """The variants of a study, from a command line; its own where none are told. `require` checks them.

    Args:
        name: Of the study.
        values: What the study's `values` says.
        count: Number of seeds from 0, for the study of seeds.
        file: YAML file with a list of variants instead: mappings of `name` and changes.

    Raises:
        InvalidInput: They cannot be read, or are told in more than one way.
    """
    if sum(map(bool, (values, count is not None, file))) > 1:
        raise InvalidInput("Variants are told by values, by --count or by --variants; give one of them.")
    if count is not None:
        if name != "seeds" or count < 1:
            raise InvalidInput(f"--count {count} is a number of seeds, from 1, for the study seeds.")
        return [_seed(str(seed)) for seed in range(count)]
    if file:
        return _read(file)
    if values and name not in _READERS:
        raise InvalidInput(f"The study {name} takes no values, but {' '.join(values)}; give others by --variants FILE.")
    variants = [_READERS[name](value) for value in values] if values else [dict(one) for one in STUDIES[name].variants]
    return _distinct(variants)


def common(name: str, overrides: Mapping[str, Any], genotype: str | None = None) -> dict[str, Any]:
    """What all variants have: the study's defaults, a genotype, and what was told.

    Raises:
        InvalidInput: The study searches, or varies the architecture, and has no use for a genotype.
    """
    if genotype and "retrain.architecture" not in STUDIES[name].defaults:
        raise InvalidInput(f"The study {name} finds or varies its architectures; leave --genotype out.")
    told = {"retrain.architecture": _absolute(genotype)} if genotype else {}
    return {**STUDIES[name].defaults} | told | {**overrides}


def require(name: str, variants: Any, preset: str, overrides: Mapping[str, Any]) -> list[config.Settings]:
    """Check variants and their settings before anything is started.

    Args:
        overrides: What all variants have; see `common`.

    Returns:
        Settings of each variant.

    Raises:
        InvalidInput: A variant has no name, or the name of another one; a setting is unknown, out of range, or one of
            the attacks; or a variant lacks what its study needs.
    """
    if not isinstance(variants, list) or not all(isinstance(one, dict) and one.get("name") for one in variants):
        raise InvalidInput(
            f"The variants of {name} must be a list of mappings such as {STUDIES[name].variants[0]}, each with a name."
        )
    names = [str(variant["name"]) for variant in variants]
    if not names or len(set(names)) < len(names):
        raise InvalidInput(f"The variants of {name} are {', '.join(names) or 'none'}; give each one name of its own.")
    config.load(preset, overrides)  # what is wrong for all is no variant's fault
    found = []
    for variant in variants:
        try:
            found.append(settings := config.load(preset, overrides, variant))
        except InvalidInput as error:
            raise InvalidInput(f"Variant {variant['name']}: {error}") from None
        if attacks := [key for key in variant if key.partition(".")[0] in ("whitebox", "blackbox")]:
            raise InvalidInput(
                f"Variant {variant['name']} changes {', '.join(attacks)}, but all variants are attacked alike; set it "
                "for all of them."
            )
        if settings.retrain.architecture == "searched" and not STUDIES[name].searches:
            raise InvalidInput(
                f"Variant {variant['name']}: the study {name} does not search; name a genotype, a file or s3://... by "
                "retrain.architecture."
            )
    return found


def _distinct(variants: list[Variant]) -> list[Variant]:
    """Two data sets of one kind are told apart by their folders."""
    names = [variant["name"] for variant in variants]
    for variant in variants:
        if names.count(variant["name"]) > 1 and variant.get("prepare.path"):
            variant["name"] += f" {Path(variant['prepare.path']).name}"
    return variants


def _read(file: str) -> Any:
    try:
        return yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput(f"{file} cannot be read ({' '.join(str(error).split())}); give a YAML file.") from None
