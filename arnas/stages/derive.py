"""Stage derive: from a searched supernet to a genotype, and a drawing of its cells."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from arnas import artifacts
from arnas.space import genotype
from arnas.space.drawing import draw


def run(supernet: str | Path, output: str | Path, *, drawing: str | Path | None = None) -> dict[str, Any]:
    """Derive the discrete architecture of a searched supernet.

    Args:
        supernet: Folder that the search stage wrote.
        output: File to write the genotype to, as JSON.
        drawing: File to write the drawn cells to, as SVG.

    Returns:
        digest of the genotype, and its number of skip connections by cell kind.

    Raises:
        InvalidInput: The supernet cannot be read, or an output cannot be written.
    """
    artifacts.require_writable(output, drawing)
    body = artifacts.read(supernet, "supernet")
    tensors = load_file(Path(supernet) / "supernet.safetensors")
    prefix = "architecture."
    found = genotype.derive(
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    )
    content = body["content"]
    document = genotype.document(
        found,
        f"searched-{content['data']['dataset']}",
        content["layout"],
        {"supernet": body["digest"], "images": content["images"], "seed": content["settings"]["seed"]},
    )
    artifacts.write_text(output, json.dumps(document, indent=1) + "\n")
    if drawing is not None:
        artifacts.write_text(drawing, draw(document["cells"]))
    return {"digest": document["digest"]} | {f"skips_{kind}": count for kind, count in found.skip_connections().items()}
