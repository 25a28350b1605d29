"""The committed YAML is what the code says; KFP code stays away from torch."""

import re
import subprocess
import sys
from pathlib import Path

import arnas
from pipelines.__main__ import ROOT, STAGES, compile_all, main


def test_committed_yaml_is_current_and_compiling_is_deterministic(tmp_path: Path) -> None:
    written = compile_all(tmp_path)
    assert len(written) == len(STAGES) + 2
    for file in written:
        committed = ROOT / file.relative_to(tmp_path)
        assert file.read_text() == committed.read_text(), f"{committed} is stale: run python -m pipelines compile"


def test_images_are_tagged_with_the_version_and_nothing_is_installed_at_run_time() -> None:
    for file in [*ROOT.glob("components/*/component.yaml"), *ROOT.glob("pipelines/*.yaml")]:
        text = file.read_text()
        assert set(re.findall(r"image: (\S+)", text)) == {f"arnas:{arnas.__version__}"}
        assert "pip install" not in text


def test_pipelines_and_components_import_without_torch() -> None:
    modules = ["pipelines.__main__", "pipelines.local", "pipelines.worker", "pipelines.arnas", "pipelines.transfer"]
    code = f"import sys, {', '.join(modules)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_watching_process_imports_neither_torch_nor_kfp() -> None:
    code = "import sys, pipelines.local, pipelines.__main__; assert not {'torch', 'kfp'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_compile_command_writes_the_same_files_again() -> None:
    files = [*ROOT.glob("components/*/component.yaml"), *ROOT.glob("pipelines/*.yaml")]
    before = {file: file.read_bytes() for file in files}
    assert main(["compile"]) == 0
    assert {file: file.read_bytes() for file in files} == before
