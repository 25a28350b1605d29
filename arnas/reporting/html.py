"""The report: one page that holds everything it shows, and asks nothing of the network."""

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from arnas.reporting import plots, render, words
from arnas.reporting.scores import Run, front, rows, strongest, violations
from arnas.space import drawing
from arnas.space.operations import OPERATIONS


def page(run: Run, scores: Mapping[str, Any], document: str) -> str:
    """The page as text; `scores` are those of the run, and every score on the page is one of them.

    Same run, same text.

    Args:
        document: The scores as the text of scores.json, for the download.
    """
    models = scores["models"]
    names = words.titles(scores["settings"]["whitebox"])
    alarms = violations(scores)
    pairs = words.comparisons(scores.get("pairs", []), names)
    return render.page(
        "report.html.j2",
        files=render.downloads(f"arnas-{scores['data']['dataset']}", document, rows(scores)),
        title=f"ARNAS report: {scores['data']['dataset']}",
        what="run",
        run=run,
        scores=scores,
        claim=words.claim(run, scores),
        qualification=words.qualification(scores),
        alarms=alarms,
        warnings=[warning for warning in scores["warnings"] if warning not in alarms],
        limits=words.limits(run, scores),
        best=words.best(scores),
        attacks=made(models, names),
        names=names,
        made=made,
        ball=words.ball,
        pairs=pairs,
        tally=words.tally(pairs),
        cells=_cells(run),
        search=_search(run),
        training=_training(run),
        attacked=_attacked(scores, names),
        examples={name: list(_examples(run, name)) for name in run.examples},
        artifacts=list(run.artifacts()),
        settings=render.as_yaml(scores["settings"]),
        versions=scores["versions"],
    )


def made(entries: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, str]:
    """The attacks that any of the models met, and their titles."""
    return {attack: title for attack, title in names.items() if any(attack in entry for entry in entries.values())}


def _cells(run: Run) -> list[Markup]:
    if run.genotype is None:
        return []
    cells = run.genotype["cells"]
    return [Markup(drawing.draw_cell(kind, cells[kind])) for kind in drawing.COLOURS if kind in cells]


def _search(run: Run) -> dict[str, Markup]:
    """Figures of the search, by name."""
    if run.search is None or run.supernet is None:
        return {}
    limit = run.supernet["content"]["settings"]["collapse_limit"]
    figures = {
        "losses": plots.search_losses(run.search),
        "gradients": plots.search_gradients(run.search),
        "entropy": plots.entropy(run.search, len(OPERATIONS)),
        "skips": plots.skips(run.search, limit),
        "weights": plots.operation_weights(run.search, list(OPERATIONS)),
    }
    return {name: Markup(figure) for name, figure in figures.items()}


def _training(run: Run) -> dict[str, Markup]:
    """The training of each model that was trained here."""
    selections = {name: body["content"]["selection"] for name, body in run.trained().items()}
    return {name: Markup(plots.training(name, run.histories[name], chosen)) for name, chosen in selections.items()}


def _attacked(scores: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Figures of the attacks, by name, and the Pareto front."""
    figures: dict[str, Any] = {}
    attack = strongest(scores["models"])
    models = {name: entry for name, entry in scores["models"].items() if attack in entry}
    if attack is not None:
        figures["front"], figures["title"] = front(models, attack), names[attack]
        guessing = 1 / len(scores["data"]["classes"])
        figures["scatter"] = Markup(plots.scatter(models, attack, names[attack], figures["front"], guessing))
    if curves := {name: entry["curve"] for name, entry in models.items() if "curve" in entry}:
        figures["curves"] = Markup(plots.curves(curves, scores["settings"]["whitebox"].get("norm", "linf")))
    if "blackbox" in scores:
        figures["matrix"] = Markup(plots.matrix(scores["blackbox"]))
    return figures


def _examples(run: Run, name: str) -> Iterator[dict[str, Any]]:
    """Image, magnified perturbation (full scale is epsilon) and adversarial image, with class names."""
    content, tensors = run.evaluations[name]["content"], run.examples[name]
    epsilon, classes = content["settings"]["epsilon"], content["data"]["classes"]
    for index in range(len(tensors["labels"])):
        clean, adversarial = tensors["images"][index], tensors["adversarial"][index]
        yield {
            "label": classes[int(tensors["labels"][index])],
            "clean": classes[int(tensors["clean_prediction"][index])],
            "attacked": classes[int(tensors["adversarial_prediction"][index])],
            "image": _png(clean),
            "perturbation": _png(0.5 + (adversarial - clean) / (2 * epsilon) if epsilon else np.full_like(clean, 0.5)),
            "adversarial": _png(adversarial),
        }


def _png(pixels: NDArray[Any]) -> str:
    """Pixels [C, H, W] in [0, 1] as the address of a PNG image that it holds itself."""
    levels = (pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
