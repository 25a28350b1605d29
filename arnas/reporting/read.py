"""Models and their evaluations, as report and study take them: one of each name, and one evaluation of a model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from arnas import artifacts
from arnas.errors import InvalidInput

Pathlike = str | Path
Body = dict[str, Any]


def models(paths: Iterable[Pathlike]) -> dict[str, Body]:
    """Models by their names, in the order given.

    Raises:
        InvalidInput: One is missing or damaged, or two are of one name.
    """
    found: dict[str, Body] = {}
    for path in paths:
        body = artifacts.read(path, "model")
        if (name := body["content"]["name"]) in found:
            raise InvalidInput(
                f"Two models are called {name!r}, the second is {path}; give each once, trained under its own name."
            )
        found[name] = body
    return found


def evaluations(paths: Iterable[Pathlike], models: Mapping[str, Body]) -> dict[str, tuple[Body, Path]]:
    """Evaluations and where they lie by the name of the model, in the order of the models.

    Raises:
        InvalidInput: One is missing or damaged, or of another model, or the second of one.
    """
    names = {body["digest"]: name for name, body in models.items()}
    found: dict[str, tuple[Body, Path]] = {}
    for path in paths:
        body = artifacts.read(path, "evaluation")
        name = names.get(body["content"]["model_digest"])
        if name is None:
            raise InvalidInput(
                f"Evaluation {path} is of a model {body['content']['model']!r} that is not here; give that model too."
            )
        if name in found:
            raise InvalidInput(f"Evaluation {path} is the second one of {name!r}; give one for each model.")
        found[name] = body, Path(path)
    return {name: found[name] for name in models if name in found}
