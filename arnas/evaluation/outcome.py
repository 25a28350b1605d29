"""What white-box attacks did to each sample, and the evaluation artifact that it becomes, at once or out of shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from arnas import artifacts, runtime
from arnas.attacks.autoattack import PARTS
from arnas.errors import InvalidInput
from arnas.evaluation import checks, corruptions, curve
from arnas.evaluation.statistics import score
from arnas.evaluation.units import ROBUST, Shard


@dataclass(frozen=True)
class Outcome:
    """The attacked samples of one model.

    Args:
        about: Which model, images and settings: the content of the artifact, less what follows from the samples.
        samples: As WhiteboxEvaluation has them: bool [n] by attack, still right; int8 [m] by `SERIES_first`; bool
            [m, corruptions, severities] as `corruptions`.
        examples: Of the first attacked samples, `places` in the test split int64 [k], `images` and `adversarial`
            [k, C, H, W], `labels`, `clean_prediction` and `adversarial_prediction` int64 [k].
        warnings: AutoAttack's own.
    """

    about: Mapping[str, Any]
    samples: Mapping[str, Tensor]
    examples: Mapping[str, Tensor]
    warnings: Sequence[str]

    def write(self, output: str | Path, origin: Mapping[str, Any]) -> dict[str, Any]:
        """Write the evaluation artifact; returns its digest and the accuracy by attack. Says the warnings."""
        further = {name: values for name, values in self.samples.items() if name.endswith("_first")}
        further["corruptions"] = self.samples["corruptions"]
        outcomes = {name: right for name, right in self.samples.items() if name not in further}
        if len(further["autoattack_first"]):
            outcomes["autoattack"] = further["autoattack_first"] == ROBUST
        content = {**self.about, **self._findings(outcomes, further)}
        files = outcomes | {name: values for name, values in further.items() if len(values)}
        digest = self._publish(output, "evaluation", files, content, origin)
        for warning in content["warnings"]:
            runtime.say("whitebox", f"warning: {warning}")
        return {"digest": digest} | figures(content)

    def _findings(self, outcomes: Mapping[str, Tensor], further: Mapping[str, Tensor]) -> dict[str, Any]:
        """What follows from the samples."""
        settings = self.about["settings"]
        attacked = further["autoattack_first"]
        parts = PARTS[settings["autoattack_version"]] if len(attacked) else ()
        radii = curve.epsilons(settings["epsilon"], settings["norm"], self.about["data"]["shape"])
        points = curve.points(further["curve_first"], radii)
        table, corrupted = corruptions.scores(further["corruptions"])
        checked = [
            *checks.stronger_no_weaker(outcomes),
            *checks.restarts_break_little(further["restarts_first"]),
            *checks.unbounded_breaks_all(points),
            *checks.square_breaks_no_more(attacked, parts),
            *checks.autoattack_trusts_itself(self.warnings, parts),
        ]
        return {
            "scores": {name: score(int(right.sum()), len(right)) for name, right in outcomes.items()},
            "autoattack_parts": [*parts],
            "curve": points,
            "corruptions": table,
            "corrupted": corrupted,
            "checks": checked,
            "notes": checks.not_made(settings),
            "warnings": [check["sentence"] for check in checked if not check["holds"]],
        }

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


def figures(content: Mapping[str, Any]) -> dict[str, float]:
    """Accuracies in [0, 1] by attack, and under corruptions as `corrupted`, of an evaluation's content."""
    corrupted = {"corrupted": content["corrupted"]} if content["corrupted"] else {}
    return {name: entry["accuracy"] for name, entry in (content["scores"] | corrupted).items()}


def _require_all(shards: Sequence[Shard]) -> None:
    """Every share of the work once."""
    given = ", ".join(str(shard) for shard in shards) or "none"
    count = shards[0].count if shards else 1
    if sorted(shards, key=lambda shard: shard.index) != [Shard(index, count) for index in range(count)]:
        raise InvalidInput(f"The shards given are {given}; give each of 1/{count} to {count}/{count} once.")
