"""Report: everything that a run found, as one page for people and one document for programs."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from arnas import artifacts, config
from arnas.config import Settings
from arnas.errors import InvalidInput
from arnas.reporting import html as html_page
from arnas.reporting import read, words
from arnas.reporting.collect import collect
from arnas.reporting.scores import COLUMNS, Run
from arnas.space import genotype as genotypes

Pathlike = str | Path


def run(
    html: Pathlike,
    scores: Pathlike,
    *,
    images: Pathlike,
    settings: Settings,
    supernet: Pathlike | None = None,
    genotype: Pathlike | None = None,
    models: Sequence[Pathlike] = (),
    evaluations: Sequence[Pathlike] = (),
    blackbox: Pathlike | None = None,
    transfer: tuple[Pathlike, Pathlike] | None = None,
) -> dict[str, Any]:
    """Write the page and scores.json. What is not given is left out of both.

    Args:
        html: File of the page to write; it holds all it shows.
        scores: File of the scores to write, JSON.
        images: Image set that the models were evaluated on.
        settings: Settings of the whole run.
        supernet: Searched supernet.
        genotype: Genotype file that was derived from it, or a published genotype's name.
        models: Models, trained or adopted, in the order in which they are to appear.
        evaluations: White-box evaluations, in any order; each belongs to the model whose digest it names.
        blackbox: Black-box evaluation of these models.
        transfer: A model that was trained on another data set, and its evaluation there.

    Returns:
        digest of the scores; the best model's name; the accuracies of every model, by "MODEL ATTACK".

    Raises:
        InvalidInput: An artifact is missing or damaged, or does not belong to the others.
    """
    artifacts.require_writable(html, scores)
    collected = _read(images, settings, supernet, genotype, models, evaluations, blackbox, transfer)
    document = collect(collected)
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    page = html_page.page(collected, document, text)
    artifacts.write_text(scores, text)
    artifacts.write_text(html, page)

    lasting = {key: value for key, value in document.items() if key != "artifacts"}  # what they took is chance
    figures: dict[str, Any] = {"digest": artifacts.digest(lasting)}
    if (best := words.best(document)) is not None:
        figures["best"] = best
    for name, entry in document["models"].items():
        figures |= {f"{name} {attack}": entry[attack]["accuracy"] for attack in COLUMNS if attack in entry}
    return figures


def _read(
    images: Pathlike,
    settings: Settings,
    supernet: Pathlike | None,
    genotype: Pathlike | None,
    models: Sequence[Pathlike],
    evaluations: Sequence[Pathlike],
    blackbox: Pathlike | None,
    transfer: tuple[Pathlike, Pathlike] | None,
) -> Run:
    image_set = artifacts.read(images, "image_set")
    bodies = read.models(models)
    found = read.evaluations(evaluations, bodies)
    _require_comparable(found.values(), image_set["digest"])
    examples = {name: load_file(path / "examples.safetensors") for name, (_, path) in found.items()}
    black = artifacts.read(blackbox, "blackbox") if blackbox is not None else None
    if black is not None:
        _require_images(black, image_set["digest"], f"black-box evaluation {blackbox}")
        for name, digest in black["content"]["model_digests"].items():
            if name not in bodies or bodies[name]["digest"] != digest:
                raise InvalidInput(
                    f"Black-box evaluation {blackbox} is of another model {name!r}; give the models that it attacked."
                )
    transferred = None
    if transfer is not None:
        transferred = artifacts.read(transfer[0], "model"), artifacts.read(transfer[1], "evaluation")
        if transferred[1]["content"]["model_digest"] != transferred[0]["digest"]:
            raise InvalidInput(f"Evaluation {transfer[1]} is not of the transferred model {transfer[0]}; give its own.")
    return Run(
        settings=settings,
        images=image_set,
        genotype=genotypes.load(str(genotype))[1] if genotype is not None else None,
        supernet=artifacts.read(supernet, "supernet") if supernet is not None else None,
        search=_history(supernet) if supernet is not None else None,
        models=bodies,
        histories={
            name: _history(path)
            for (name, body), path in zip(bodies.items(), models, strict=True)
            if "history.json" in body["files"]
        },
        evaluations={name: body for name, (body, _) in found.items()},
        outcomes={name: load_file(path / "outcomes.safetensors") for name, (_, path) in found.items()},
        examples={name: tensors for name, tensors in examples.items() if len(tensors["labels"])},
        blackbox=black,
        blackbox_outcomes=load_file(Path(blackbox) / "outcomes.safetensors") if blackbox is not None else {},
        transfer=transferred,
    )


def _require_comparable(evaluations: Collection[tuple[Mapping[str, Any], Path]], images: str) -> None:
    for body, path in evaluations:
        _require_images(body, images, f"evaluation {path}")
    balls = {_ball(body["content"]["settings"]) for body, _ in evaluations}
    if len(balls) > 1:
        raise InvalidInput(
            f"The evaluations attack at epsilon {' and '.join(sorted(balls))}, which one table cannot compare; "
            "evaluate all models at one."
        )


def _ball(settings: Mapping[str, Any]) -> str:
    """Radius and norm, and the version of AutoAttack unless it is the standard one."""
    version = settings.get("autoattack_version", "standard")
    parts = [config.intensity(settings["epsilon"]), settings.get("norm", "linf")]
    return " ".join(parts + ([f"(AutoAttack {version})"] if version != "standard" else []))


def _require_images(body: Mapping[str, Any], images: str, what: str) -> None:
    if body["content"]["images"] != images:
        raise InvalidInput(f"The {what} was made on another image set; give the images that it attacked.")


def _history(path: Pathlike) -> dict[str, Any]:
    history: dict[str, Any] = json.loads((Path(path) / "history.json").read_text(encoding="utf-8"))
    return history
