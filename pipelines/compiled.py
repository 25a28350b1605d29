"""A compiled pipeline as a file: which parameters it takes, which tasks it has, and what it asks of a cluster."""

import contextlib
import difflib
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from arnas.config import assignments, validate
from arnas.errors import InvalidInput
from cluster.preflight import Needs
from pipelines import generate
from pipelines.placement import CA_FOLDER

QUEUE = "kueue.x-k8s.io/queue-name"  # label of pods that wait in a queue of Kueue
KINDS: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}


def find(pipeline: str, image: str | None = None, placement: str | None = None) -> "Compiled":
    """One of our pipelines, or a file.

    Args:
        pipeline: Name of one of ours, as it was committed, or path of a compiled pipeline.
        image: In which the tasks of ours run, where not in the committed one.
        placement: File with what differs from the committed placement, for ours.

    Raises:
        InvalidInput: There is no such pipeline, the image is mutable, or the placement is wrong.
    """
    if pipeline not in generate.PIPELINES:
        if image or placement:
            raise InvalidInput(f"--image and --placement are for {', '.join(generate.PIPELINES)}, not for {pipeline}.")
        return Compiled(Path(pipeline))
    if not (image or placement):
        return Compiled(generate.place_of(pipeline))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{pipeline}.yaml"
        return Compiled(generate.compile_pipeline(pipeline, file, image=image, placement=placement))


class Compiled:
    """A compiled pipeline.

    Raises:
        InvalidInput: The file is none.
    """

    def __init__(self, file: Path):
        self.name = file.stem
        self.documents: list[dict[str, Any]] = []  # the pipeline, and its platform section where it has one
        with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
            self.documents = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
        if not (self.documents and isinstance(self.documents[0], dict) and "pipelineInfo" in self.documents[0]):
            ours = ", ".join(generate.PIPELINES)
            raise InvalidInput(f"{file} is no compiled pipeline; name {ours}, or a file that `compile` has written.")
        self.inputs: dict[str, Any] = self.documents[0]["root"].get("inputDefinitions", {})

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """What a run may be told: KFP's description of each parameter, by name."""
        return dict(self.inputs.get("parameters", {}))

    def told(self, words: Iterable[str]) -> dict[str, Any]:
        """Parameters from words such as gpus=2; values are YAML, but text where the pipeline wants text.

        Raises:
            InvalidInput: There is no such parameter, or it is of another kind.
        """
        return {name: value for word in words for name, value in [self._parameter(word)]}

    def require(self, told: dict[str, Any]) -> None:
        """Refuse what KFP would find missing when the run is there already.

        Raises:
            InvalidInput: The pipeline needs a parameter that is not told, or an artifact.
        """
        for name, about in self.parameters.items():
            if name not in told and not about.get("isOptional"):
                raise InvalidInput(f"{self.name} needs {name}; give --parameter {name}=VALUE.")
        for name, about in self.inputs.get("artifacts", {}).items():
            if not about.get("isOptional"):
                raise InvalidInput(f"{self.name} needs the artifact {name}, which only another pipeline hands over.")

    def needs(self, told: dict[str, Any], **more: str | None) -> Needs:
        """What a run that is told this asks the cluster for.

        Args:
            told: Parameters of the run.
            more: Other fields of Needs, where they are known.

        Raises:
            InvalidInput: A parameter cannot be, such as a number of GPUs below 0.
        """
        defaults = {name: about.get("defaultValue") for name, about in self.parameters.items()}
        values = {name: value for name, value in (defaults | told).items() if name in Needs.model_fields}
        containers = {
            name: executor["container"]
            for name, executor in self.documents[0]["deploymentSpec"]["executors"].items()
            if "container" in executor
        }
        values["images"] = sorted({container["image"] for container in containers.values()})
        for container in containers.values():
            values[f"{_kind(container)}_resources"] = _resources(container.get("resources", {}))
        platform = next(iter(self.documents[1:]), {}).get("platforms", {}).get("kubernetes", {})
        for name, pod in platform.get("deploymentSpec", {}).get("executors", {}).items():
            kind = _kind(containers.get(name, {}))
            key = f"{kind}_tolerations"
            fixed = [one for one in pod.get("tolerations", []) if "tolerationJson" not in one]
            values[key] = [*values.get(key, []), *(one for one in fixed if one not in values.get(key, []))]
            values["queue"] = pod.get("podMetadata", {}).get("labels", {}).get(QUEUE) or values.get("queue", "")
            for affinity in pod.get("nodeAffinity", []):
                fixed_affinity = affinity.get("nodeAffinityJson", {}).get("runtimeValue", {}).get("constant")
                values[f"{kind}_affinity"] = fixed_affinity or values.get(f"{kind}_affinity", {})
            if any(volume.get("mountPath") == CA_FOLDER for volume in pod.get("secretAsVolume", [])):
                values["private_ca"] = True
        values |= {name: value for name, value in more.items() if value is not None}
        return validate(Needs, values, self.name)

    def without_cache(self) -> None:
        """Let all tasks be computed anew (KFP's own switch spares loops and nested pipelines)."""
        for part in [self.documents[0]["root"], *self.documents[0]["components"].values()]:
            for task in part.get("dag", {}).get("tasks", {}).values():
                task["cachingOptions"] = {}

    @contextlib.contextmanager
    def package(self) -> Iterator[Path]:
        """The pipeline as a file, while the context lasts."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{self.name}.yaml"
            file.write_text(yaml.safe_dump_all(self.documents), encoding="utf-8")
            yield file

    def _parameter(self, word: str) -> tuple[str, Any]:
        ((name, value),) = assignments([word]).items()
        if name not in self.parameters:
            near = difflib.get_close_matches(name, self.parameters, n=3, cutoff=0.5) or sorted(self.parameters)
            raise InvalidInput(f"{self.name} has no parameter {name}; near it are {', '.join(near)}.")
        kind = self.parameters[name]["parameterType"]
        if kind == "STRING":
            return name, word.partition("=")[2]  # 1 and true are words there
        if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
            raise InvalidInput(f"--parameter {word}: {name} must be of type {kind}.")
        return name, value


def _kind(container: dict[str, Any]) -> str:
    """Whether a task is one for a GPU, in the words of Needs."""
    return "gpu" if "accelerator" in container.get("resources", {}) else "cpu"


def _resources(told: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Requests and limits of a pod, from KFP's words for them; those that only a run knows are left out."""
    return {
        kind: {
            name.lower(): value
            for name in ("Cpu", "Memory")
            if (value := told.get(f"resource{name}{kind.capitalize().rstrip('s')}")) and "{{" not in value
        }
        for kind in ("requests", "limits")
    }
