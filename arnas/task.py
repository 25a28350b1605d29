"""What a Kubeflow task does around its stage: find the store, read numbers out of text, describe what was written.

Components call this so that each remains a signature, a docstring and one call. Nothing here knows Kubeflow: an
artifact is whatever has a `path` and a `metadata` dictionary.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from arnas import artifacts, runtime
from arnas.errors import InvalidInput


class Artifact(Protocol):
    """An output of a task, as KFP hands it to a component."""

    path: str
    metadata: dict[str, Any]


def use_store(endpoint: str) -> None:
    """Look for places s3://... at this address; if it is empty, where the environment says (AWS_ENDPOINT_URL)."""
    if endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint


def gpus(promised: str) -> int:
    """Number of GPUs out of text: Kubeflow takes a pod's number of accelerators from text parameters only.

    Raises:
        InvalidInput: The text is no number from 0.
    """
    if not promised.isdecimal():
        raise InvalidInput(f"gpus = {promised!r} is no number of GPUs; give 0 for none, or 1, 2 and so on.")
    return int(promised)


def record(
    artifact: Artifact, figures: Mapping[str, Any], metrics: Artifact | None = None, forms: Sequence[Artifact] = ()
) -> None:
    """Describe an artifact to whoever looks at the run: its digests, its seed, the versions, the stage's figures.

    Args:
        artifact: What the stage wrote.
        figures: What the stage returned.
        metrics: Where the numbers among the figures go once more, for comparison between runs.
        forms: What shows the same in another form, such as a page, and is described by the same words.
    """
    versions = ", ".join(f"{name} {version}" for name, version in runtime.versions().items())
    artifact.metadata.update({**describe(artifact.path), "versions": versions, **figures})
    for form in forms:
        form.metadata.update(artifact.metadata)
    if metrics is not None:
        metrics.metadata.update({name: figure for name, figure in figures.items() if isinstance(figure, int | float)})


def describe(path: str | Path) -> dict[str, Any]:
    """What an artifact says of itself and of where it comes from.

    Args:
        path: Folder that a stage wrote, or a file of JSON (a genotype, scores).

    Returns:
        Of `digest`, `kind`, `seed`, the digests `settings`, `images`, `model`, `supernet` and `genotype` (of its cells
        alone), and, as JSON text, `settings_json` and `models_json` (digests by name), those that it knows.
    """
    file = Path(path)
    body = json.loads((file / "artifact.json" if file.is_dir() else file).read_text(encoding="utf-8"))
    content = body.get("content", body) | body.get("origin", {})
    settings = content.get("settings", {})
    cells = content.get("cells") or content.get("network", {}).get("cells")
    known = {
        "digest": body.get("digest"),
        "kind": body.get("kind"),
        "seed": content.get("seed", settings.get("seed")),
        "settings": artifacts.digest(settings) if settings else None,
        "settings_json": json.dumps(settings) if settings else None,
        "images": content.get("images"),
        "model": content.get("model_digest"),
        "models_json": json.dumps(content["model_digests"]) if "model_digests" in content else None,
        "supernet": content.get("supernet"),
        "genotype": artifacts.digest(cells) if cells else None,
    }
    return {name: value for name, value in known.items() if isinstance(value, str | int)}
