"""Generated files are what the code says, and are whole; KFP code stays away from torch."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import arnas
from pipelines import placement
from pipelines.__main__ import main
from pipelines.generate import COMPONENTS, PIPELINES, ROOT, compile_all, place_of

COMMITTED = [*ROOT.glob("components/*/component.yaml"), *ROOT.glob("pipelines/**/*.yaml")]
COMPILED = [file for file in COMMITTED if file != placement.COMMITTED]


def specs(root: Path = ROOT) -> Iterator[tuple[Path, dict[str, Any], dict[str, Any]]]:
    """Each pipeline's file, its specification, and that of the platform."""
    for name in PIPELINES:
        file = place_of(name, root)
        specification, platform = yaml.safe_load_all(file.read_text())
        yield file, specification, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_committed_files_are_current_and_compiling_is_deterministic(tmp_path: Path) -> None:
    written = compile_all(tmp_path)
    assert len(written) == 2 * len(COMPONENTS) + len(PIPELINES)
    for file in written:
        committed = ROOT / file.relative_to(tmp_path)
        assert file.read_text() == committed.read_text(), f"{committed} is stale: run make generate"


def test_another_process_with_other_hashes_compiles_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "pipelines", "compile", "--output", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    for file in COMPILED:
        assert (tmp_path / file.relative_to(ROOT)).read_bytes() == file.read_bytes()


def test_images_are_tagged_with_the_version_and_nothing_is_installed_at_run_time() -> None:
    assert len(COMPILED) == len(COMPONENTS) + len(PIPELINES)
    for file in COMPILED:
        text = file.read_text()
        assert set(re.findall(r"image: (\S+)", text)) == {f"arnas:{arnas.__version__}"}
        assert "pip install" not in text


def test_a_site_compiles_its_own_image_and_placement_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("gpu_pool: {pool: big}\nretries: {count: 7}\n")
    image = "registry.example.org/arnas:0.1.0"
    options = ["--image", image, "--placement", str(tmp_path / "my.yaml"), "--output", str(tmp_path / "out")]
    assert main(["compile", *options]) == 0
    for file in COMPILED:
        text = (tmp_path / "out" / file.relative_to(ROOT)).read_text()
        assert set(re.findall(r"image: (\S+)", text)) == {image}
    _, specification, _ = next(specs(tmp_path / "out"))
    assert specification["root"]["inputDefinitions"]["parameters"]["gpu_pool"]["defaultValue"] == {"pool": "big"}
    tasks = specification["root"]["dag"]["tasks"].values()
    assert {task["retryPolicy"]["maxRetryCount"] for task in tasks if "retryPolicy" in task} == {7}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--image", "host/arnas:latest"], r"image 'host/arnas:latest' does not say which content it means"),
        (["--image", "host/arnas:0.1.0"], r"The committed files fit every site; .* give --output a folder"),
        (["--placement", "/no/such.yaml"], r"/no/such.yaml cannot be read"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in COMMITTED}
    assert main(["compile", *options]) == 2
    message = capsys.readouterr().err
    assert re.search(sentence, message) and message.count("\n") == 1
    assert {file: file.read_bytes() for file in COMMITTED} == before


def missing_inputs(specification: dict[str, Any], executors: dict[str, Any]) -> list[str]:
    """What tasks or their placement ask of the graph that they are in, and which it does not have."""
    components = specification["components"]
    found = []
    for name, graph in {"root": specification["root"], **components}.items():
        if "dag" not in graph:
            continue
        inputs = graph.get("inputDefinitions", {})
        given = {*inputs.get("parameters", {}), *inputs.get("artifacts", {})}
        for task in graph["dag"]["tasks"].values():
            label = components[task["componentRef"]["name"]].get("executorLabel", "")
            items = task.get("parameterIterator", {})
            own = {*task.get("inputs", {}).get("parameters", {}), items.get("itemInput")}
            found += [
                f"{name}: {asked}"
                for asked in re.findall(
                    r"'componentInput\w+': '([^']+)'", str(task.get("inputs", {})) + str(executors.get(label, {}))
                )
                if asked not in given
            ]
            resources = specification["deploymentSpec"]["executors"].get(label, {}).get("container", {})
            asked_by_pod = re.findall(r"\{\{\$\.inputs\.parameters\['(.+?)'\]\}\}", str(resources.get("resources")))
            found += [f"{name}: {asked}" for asked in asked_by_pod if asked not in own]
    return found


def test_every_input_that_a_task_or_its_pod_asks_for_is_one_of_its_graph() -> None:
    for file, specification, executors in specs():
        assert missing_inputs(specification, executors) == [], file


def test_the_search_for_missing_inputs_finds_one_that_is_taken_away() -> None:
    _, specification, executors = next(specs())
    del specification["components"]["comp-for-loop-1"]["inputDefinitions"]["parameters"]["pipelinechannel--accelerator"]
    assert missing_inputs(specification, executors)


def test_a_pipeline_asks_a_run_for_parameters_only() -> None:
    for file, specification, _ in specs():
        assert "artifacts" not in specification["root"]["inputDefinitions"], file


def test_nothing_in_the_compiled_files_looks_like_a_tag_of_argos() -> None:
    for file in COMPILED:
        tags = set(re.findall(r"\{\{.*?\}\}", file.read_text()))
        assert all(tag.startswith("{{$") for tag in tags), file


def test_pipelines_and_components_import_without_torch() -> None:
    modules = [f"pipelines.{name}" for name in ("__main__", "local", "worker", "arnas", "transfer", "study", "studies")]
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_watching_process_imports_neither_torch_nor_kfp() -> None:
    code = "import sys, pipelines.local, pipelines.__main__; assert not {'torch', 'kfp'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
