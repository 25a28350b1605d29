"""What a compiled pipeline says of itself is read from its YAML, and from nothing else."""

from pathlib import Path

import pytest
import yaml

from arnas.errors import InvalidInput
from pipelines.compiled import Compiled, find
from pipelines.generate import PIPELINES

PARAMETERS = {
    "gpus": {"parameterType": "STRING", "defaultValue": "2", "isOptional": True},
    "gpu_tolerations": {"parameterType": "LIST", "defaultValue": [{"key": "a"}], "isOptional": True},
    "rate": {"parameterType": "NUMBER_DOUBLE", "isOptional": True},
    "count": {"parameterType": "NUMBER_INTEGER", "isOptional": True},
    "fast": {"parameterType": "BOOLEAN", "isOptional": True},
}


def write(folder: Path, **pods: dict) -> Compiled:
    """A pipeline of two tasks, one of them with GPUs, and what the platform section says of their pods."""
    container = {"image": "arnas:1"}
    executors = {"gpu": {"container": container | {"resources": {"accelerator": {}}}}, "cpu": {"container": container}}
    pipeline = {
        "pipelineInfo": {"name": "sample"},
        "root": {"inputDefinitions": {"parameters": PARAMETERS}},
        "deploymentSpec": {"executors": executors},
    }
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": pods}}}}
    (folder / "sample.yaml").write_text(yaml.safe_dump_all([pipeline, platform]))
    return Compiled(folder / "sample.yaml")


def test_needs_are_the_defaults_and_what_a_run_is_told(tmp_path: Path) -> None:
    sample = write(tmp_path)
    assert (sample.needs({}).gpus, sample.needs({}).images) == (2, ["arnas:1"])
    assert sample.needs({"gpus": "0"}, namespace="team", trainer=None).model_dump(include={"gpus", "namespace"}) == {
        "gpus": 0,
        "namespace": "team",
    }


def test_tolerations_and_the_queue_of_the_platform_section_count(tmp_path: Path) -> None:
    by_parameter = {"tolerationJson": {"componentInputParameter": "gpu_tolerations"}}
    queue = {"labels": {"kueue.x-k8s.io/queue-name": "gold"}}
    gpu = {"tolerations": [by_parameter, {"key": "b", "operator": "Exists"}], "podMetadata": queue}
    needs = write(tmp_path, gpu=gpu, cpu={"tolerations": [{"key": "c"}]}).needs({})
    assert needs.gpu_tolerations == [{"key": "a"}, {"key": "b", "operator": "Exists"}]
    assert needs.cpu_tolerations == [{"key": "c"}]
    assert needs.queue == "gold"


def test_every_image_of_a_foreign_file_counts_and_a_file_without_any_has_none(tmp_path: Path) -> None:
    sample = write(tmp_path)
    executors = sample.documents[0]["deploymentSpec"]["executors"]
    executors["gpu"]["container"]["image"] = "other:latest"
    assert sample.needs({}).images == ["arnas:1", "other:latest"]
    sample.documents[0]["deploymentSpec"]["executors"] = {"importer": {"importer": {}}}
    assert sample.needs({}).images == []


def test_what_a_sites_placement_gives_to_its_tasks_is_asked_for(tmp_path: Path) -> None:
    affinity = {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
        }
    }
    tasks = {"affinity": affinity, "memory": {"request": "3Gi", "limit": "12Gi"}, "cpu": {"limit": "2"}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"gpu_tasks": tasks, "private_ca": True}))
    needs = find("arnas", None, str(tmp_path / "site.yaml")).needs({})
    assert needs.gpu_resources == {
        "requests": {"cpu": "1", "memory": "3Gi"},
        "limits": {"cpu": "2", "memory": "12Gi"},
    }
    assert needs.cpu_resources == {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}}
    assert (needs.gpu_affinity, needs.cpu_affinity, needs.private_ca) == (affinity, {}, True)
    assert find("arnas").needs({}).private_ca is False


@pytest.mark.parametrize(
    ("word", "value"),
    [("gpus=2", "2"), ("gpus=", ""), ("rate=2", 2), ("rate=0.5", 0.5), ("count=3", 3), ("fast=true", True)],
)
def test_words_become_values_by_type_and_never_by_looks(word: str, value: object, tmp_path: Path) -> None:
    assert write(tmp_path).told([word]) == {word.partition("=")[0]: value}


@pytest.mark.parametrize("word", ["rate=fast", "count=0.5", "count=true", "fast=1", "gpu_tolerations={key: a}"])
def test_a_value_of_another_type_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"must be of type [A-Z_]+\."):
        write(tmp_path).told([word])


@pytest.mark.parametrize("name", PIPELINES)
def test_the_committed_pipelines_say_what_they_need(name: str) -> None:
    needs = find(name).needs({})
    assert needs.secret and needs.endpoint.startswith("http") and needs.checkpoints.startswith("s3://")
    assert {"key": "nvidia.com/gpu", "operator": "Exists"} in needs.gpu_tolerations
