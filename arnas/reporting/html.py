"""The report: one page that holds everything it shows, and asks nothing of the network."""

import base64
import io
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from arnas.reporting import plots, words
from arnas.reporting.scores import ATTACKS, Run
from arnas.space import drawing
from arnas.space.operations import OPERATIONS

INTENSITIES = ("epsilon", "step_size")  # settings that are given as fractions of 255


def page(run: Run, scores: Mapping[str, Any]) -> str:
    """The page as text; `scores` are those of the run, and every score on the page is one of them.

    Same run, same text.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": words.percent, "intensity": words.intensity, "duration": words.duration}
    source = resources.files("arnas.reporting").joinpath("report.html.j2").read_text(encoding="utf-8")
    attacks = [attack for attack in ATTACKS if any(attack in entry for entry in scores["models"].values())]
    text: str = environment.from_string(source).render(
        run=run,
        scores=scores,
        claim=words.claim(run, scores),
        qualification=words.qualification(scores),
        limits=words.limits(run, scores),
        best=words.best(scores),
        attacks={attack: ATTACKS[attack] for attack in attacks},
        names=ATTACKS,
        cells=_cells(run),
        search=_search(run),
        training=_training(run),
        scatter=_scatter(scores),
        matrix=Markup(plots.matrix(scores["blackbox"])) if "blackbox" in scores else None,
        examples={name: list(_examples(run, name)) for name in run.examples},
        artifacts=list(run.artifacts()),
        settings=as_yaml(scores["settings"]),
        as_yaml=as_yaml,
    )
    return text.lstrip()


def as_yaml(values: Any) -> str:
    """Settings as the text of a preset file, which says 8/255 and not 0.03137254901960784."""
    text: str = yaml.safe_dump(_fractions(values), sort_keys=False, allow_unicode=True, width=100)
    return text


def _fractions(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _fraction(value) if key in INTENSITIES else _fractions(value) for key, value in values.items()}
    return values


def _fraction(value: float | str) -> float | str:
    """As text where it is exactly a fraction; the settings of one of `models` may hold text already."""
    return text if isinstance(value, float) and "/" in (text := words.intensity(value)) else value


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
    selections = {name: body["content"]["selection"] for name, body in run.trained().items()}
    return {name: Markup(plots.training(name, run.histories[name], selections[name])) for name in selections}


def _scatter(scores: Mapping[str, Any]) -> Markup | None:
    models = {name: entry for name, entry in scores["models"].items() if "autoattack" in entry}
    return Markup(plots.scatter(models, 1 / len(scores["data"]["classes"]))) if models else None


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
