"""What white-box attacks did to each sample, and the evaluation artifact that it becomes, at once or out of shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from arnas import artifacts, runtime
from arnas.errors import InvalidInput
from arnas.evaluation import ladder
from arnas.evaluation.statistics import score
from arnas.evaluation.units import Shard
from arnas.evaluation.whitebox import ROBUST


@dataclass(frozen=True)
class Outcome:
    """The attacked samples of one model.

    Args:
        about: Which model, images and settings: the content of the artifact, less what follows from the samples.
        samples: bool [n] by attack, still right; `autoattack_first` int8 [m], as in WhiteboxEvaluation.
        examples: Of the first attacked samples, `places` in the test split int64 [k], `images` and `adversarial`
            [k, C, H, W], `labels`, `clean_prediction` and `adversarial_prediction` int64 [k].
        warnings: Of the attacks themselves.
    """

    about: Mapping[str, Any]
    samples: Mapping[str, Tensor]
    examples: Mapping[str, Tensor]
    warnings: Sequence[str]

    def write(self, output: str | Path, origin: Mapping[str, Any]) -> dict[str, Any]:
        """Write the evaluation artifact; returns its digest and the accuracy by attack. Says the warnings."""
        samples = dict(self.samples)
        warnings = sorted(self.warnings)
        if len(first := samples.pop("autoattack_first")):
            samples["autoattack"] = first == ROBUST
            warnings += ladder.square_doubts(first)
        warnings += ladder.violations(samples)
        scores = {name: score(int(right.sum()), len(right)) for name, right in samples.items()}
        content = {**self.about, "scores": scores, "warnings": warnings}
        files = samples | ({"autoattack_first": first} if len(first) else {})
        digest = self._publish(output, "evaluation", files, content, origin)
        for warning in warnings:
            runtime.say("whitebox", f"warning: {warning}")
        return {"digest": digest} | {name: entry["accuracy"] for name, entry in scores.items()}

    def write_shard(self, output: str | Path, shard: Shard, origin: Mapping[str, Any]) -> str:
        """Write a share, which `join` reads; samples outside of it hold nothing. Returns its digest."""
        content = {**self.about, "shard": str(shard), "warnings": [*self.warnings]}
        return self._publish(output, "evaluation_shard", self.samples, content, origin)

    @classmethod
    def join(cls, shards: Sequence[str | Path]) -> Self:
        """Put shards together again: the outcome is that of one run over all samples.

        Raises:
            InvalidInput: One cannot be read, is missing or double, or they belong to different evaluations.
        """
        parts = [cls._read(path) for path in shards]
        _require_all([shard for shard, _ in parts])
        abouts = [artifacts.digest(part.about) for _, part in parts]
        for path, about in zip(shards, abouts, strict=True):
            if about != abouts[0]:
                raise InvalidInput(f"{path} is of another model, image set or settings than {shards[0]}.")
        size = parts[0][1].about["settings"]["block_size"]
        samples = {name: values.clone() for name, values in parts[0][1].samples.items()}
        for shard, part in parts:
            for name, values in samples.items():
                own = torch.tensor([shard.takes(place // size) for place in range(len(values))], dtype=torch.bool)
                values[own] = part.samples[name][own]
        examples = {name: torch.cat([part.examples[name] for _, part in parts]) for name in parts[0][1].examples}
        first = examples["places"].argsort()[: parts[0][1].about["settings"]["examples"]]
        warnings = {warning: None for _, part in parts for warning in part.warnings}
        return cls(parts[0][1].about, samples, {name: kept[first] for name, kept in examples.items()}, [*warnings])

    @classmethod
    def _read(cls, path: str | Path) -> tuple[Shard, Self]:
        content = dict(artifacts.read(path, "evaluation_shard")["content"])
        shard, warnings = Shard.parse(content.pop("shard")), content.pop("warnings")
        samples, examples = (load_file(Path(path) / f"{name}.safetensors") for name in ("outcomes", "examples"))
        return shard, cls(content, samples, examples, warnings)

    def _publish(
        self,
        output: str | Path,
        kind: str,
        samples: Mapping[str, Tensor],
        content: Mapping[str, Any],
        origin: Mapping[str, Any],
    ) -> str:
        with artifacts.publish(output) as folder:
            folder.mkdir()
            save_file(dict(samples), folder / "outcomes.safetensors")
            save_file(dict(self.examples), folder / "examples.safetensors")
            return artifacts.write(folder, kind, content, origin)


def _require_all(shards: Sequence[Shard]) -> None:
    """Every share of the work once."""
    given = ", ".join(str(shard) for shard in shards) or "none"
    count = shards[0].count if shards else 1
    if sorted(shards, key=lambda shard: shard.index) != [Shard(index, count) for index in range(count)]:
        raise InvalidInput(f"The shards given are {given}; give each of 1/{count} to {count}/{count} once.")
