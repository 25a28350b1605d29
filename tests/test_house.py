"""The rules of the house that a machine can check."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    file for package in ("arnas", "cluster", "components", "pipelines") for file in (ROOT / package).rglob("*.py")
)
LOCKS = ["requirements.lock", "requirements-dev.lock"]

# A package imports what stands on its own line or above it.
LAYERS = [
    {"arnas", "arnas.errors", "arnas._image"},
    {
        "arnas.config",
        "arnas.presets",
        "arnas.artifacts",
        "arnas.checkpoints",
        "arnas.runtime",
        "arnas.graphs",
        "arnas.objects",
    },
    {"arnas.kernels"},
    {"arnas.space", "arnas.data"},
    {"arnas.search", "arnas.proof", "arnas.training", "arnas.attacks", "arnas.evaluation", "arnas.reporting"},
    {"arnas.stages", "arnas.task"},
    {"arnas.cli", "arnas.__main__"},
    {"cluster"},
    {"components"},
    {"pipelines"},
]


def place(module):
    """Index of the layer of one of our modules; None for a module of others."""
    parts = module.split(".")
    name = parts[0] if parts[0] != "arnas" else ".".join(parts[:2])
    return next((index for index, layer in enumerate(LAYERS) if name in layer), None)


def name_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file):
    """Modules that a file imports: `a.b` for `import a.b`, `a` and `a.b` for `from a import b`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return found


def tracked():
    """Files under version control, and those that are about to be."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return [file for name in names if name and (file := ROOT / name).is_file()]


def requirements(lock):
    text = (ROOT / lock).read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_reader_of_imports_finds_them_all(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text("import a.b\nfrom c import d\nif 1:\n    import e\ndef f():\n    import g\n")
    assert imports(file) == {"a.b", "c", "c.d", "e", "g"}


def test_every_source_has_its_layer():
    assert len(SOURCES) > 30
    assert [file for file in SOURCES if place(name_of(file)) is None] == []


@pytest.mark.parametrize("file", SOURCES, ids=name_of)
def test_no_source_imports_from_a_layer_above(file):
    own = place(name_of(file))
    above = {module for module in imports(file) if (index := place(module)) is not None and index > own}
    assert not above


@pytest.mark.parametrize("file", [file for file in SOURCES if name_of(file).startswith("arnas")], ids=name_of)
def test_arnas_knows_nothing_of_kubeflow(file):
    assert not {module for module in imports(file) if module.split(".")[0] in ("kfp", "kubernetes", "kubeflow")}


def test_one_source_talks_to_the_object_store():
    assert [name_of(file) for file in SOURCES if "minio" in imports(file)] == ["arnas.objects"]


def test_components_and_pipelines_load_without_torch():
    modules = [name_of(file) for file in SOURCES if not name_of(file).startswith("arnas")]
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "False"), result.stderr


def test_no_tracked_file_is_large():
    assert [file for file in tracked() if file.stat().st_size > 500_000] == []


def test_no_tracked_file_names_a_place_of_one_machine():
    homes = re.compile(rb"(?<![\w.}])/(?:work|root|home|Users)/\w")
    assert homes.search(b"/".join([b"in ", b"home", b"me"])) and not homes.search(b"{root}/home/me")
    assert [file for file in tracked() if homes.search(file.read_bytes())] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_requirement_has_a_version_and_a_hash_and_no_address(lock):
    lines = requirements(lock)
    assert len(lines) > 50
    pinned = re.compile(r"[a-z0-9][a-z0-9._-]*==[\w.!+-]+( ; .+?)?( +--hash=sha256:[0-9a-f]{64})+")
    assert [line for line in lines if not pinned.fullmatch(line)] == []
    assert "://" not in (ROOT / lock).read_text()


def test_the_development_lock_holds_the_runtime_lock():
    assert set(requirements(LOCKS[0])) < set(requirements(LOCKS[1]))
