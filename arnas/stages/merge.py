"""Stage merge: from the shards of a white-box evaluation to the evaluation."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arnas import artifacts, runtime
from arnas.evaluation.outcome import Outcome, figures


def run(shards: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Put the shards of a white-box evaluation together; the result is that of one run over all samples.

    Args:
        shards: What whitebox wrote for each of 1/n to n/n, in any order; of 1/1 alone, a copy is made.
        output: Where the evaluation artifact goes.

    Returns:
        As whitebox: the artifact's `digest`, and the accuracy by attack.

    Raises:
        InvalidInput: A shard is unusable, missing or double, or they belong to different evaluations.
    """
    artifacts.require_writable(output)
    origin = runtime.Origin()
    if len(shards) == 1:
        body = artifacts.read(shards[0], "evaluation", "evaluation_shard")
        if body["kind"] == "evaluation":
            with artifacts.publish(output) as folder:
                shutil.copytree(shards[0], folder)
            return {"digest": body["digest"]} | figures(body["content"])
    return Outcome.join(shards).write(output, origin.report())
