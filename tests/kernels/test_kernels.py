"""The kernels where no GPU is: interpreted, and compiled for one. tests/test_gpu.py runs them on a real one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arnas import kernels

HERE = Path(__file__).parent
IMAGE = {"H": 32, "W": 32, "OH": 32, "OW": 32, "D": 1, "S": 1}
NO_NORM = dict.fromkeys(("table", "gamma", "beta"))
COUNTS = ("C", "SIZE", "ROUNDS", "IMAGES", "GROUPS", "SETS", "EDGES")

#: file, kernel, its constants, warps: the largest kernels of each kind, also on a strided edge
COMPILED = (
    [
        (file, kernel, shape | constants, warps)
        for shape in (IMAGE | {"K": 5}, IMAGE | {"K": 5, "OH": 16, "OW": 16, "S": 2, "D": 2}, IMAGE | {"K": 3})
        for file, kernel, constants, warps in [
            ("depthwise", "_depthwise", {"BLOCK": 512}, 8),
            ("depthwise", "_depthwise", {"BLOCK": 512} | NO_NORM, 8),
            ("depthwise", "_depthwise_input_gradient", {"BLOCK": 512, "ADD": False, "SETS": 1}, 8),
            ("depthwise", "_depthwise_input_gradient", {"BLOCK": 512, "ADD": True, "sums": None} | NO_NORM, 8),
            ("depthwise", "_depthwise_weight_gradient", {"BLOCK": 256, "TAPS": 32}, 8),
        ]
    ]
    + [
        ("depthwise", "_norm_input_gradient", {"PLANE": 1024, "BLOCK": 512}, 4),
        ("norm", "_statistics", {"PLANE": 1024, "BLOCK": 4096, "EPS": 1e-5}, 8),
    ]
    + [
        ("edge", kernel, {"PLANE": 1024, "BLOCK": 1024} | constants, warps)
        for kernel, constants, warps in [
            ("_combine", {"SHARED": True}, 8),
            ("_combine", {"SHARED": False, "total": None}, 8),  # a strided first source
            ("_combine_sums", {"SHARED": True, "STRENGTHS": True}, 8),
            ("_combine_sums", {"SHARED": False, "STRENGTHS": False}, 8),
            ("_combine_gradients", {}, 4),
            ("_combine_gradients", {"d_skip": None}, 4),
            ("_combine_shared_gradients", {}, 8),
            ("_combine_shared_gradients", {"d_skip": None, "EDGES": 1}, 8),
        ]
    ]
)


@pytest.fixture(scope="module")
def triton():
    return pytest.importorskip("triton", reason="Triton is not here, and torch does what its kernels would")


@pytest.mark.timeout(900)
def test_interpreted_kernels_compute_what_torch_does(triton):
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "interpreted.py")]
    result = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"\d+ passed", result.stdout) and "skipped" not in result.stdout


def test_elsewhere_a_tensor_on_the_cpu_is_torchs():
    assert not kernels.usable(torch.ones(1, 1, 2, 2))


def test_without_triton_none_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("depthwise", "edge", "norm"):
        monkeypatch.delitem(sys.modules, f"arnas.kernels.{name}", raising=False)
    assert not kernels._built.__wrapped__(torch.device("cpu"))


def test_where_triton_cannot_build_them_none_is_used_and_one_line_says_so(triton, monkeypatch, capsys):
    from arnas.kernels import norm

    def build(*_):
        raise RuntimeError("Failed to find C compiler.\nMore of it.")

    monkeypatch.setattr(norm, "statistics", build)
    assert not kernels._built.__wrapped__(torch.device("cpu"))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "(Failed to find C compiler.), and PyTorch does their work" in said


def test_where_triton_cannot_write_its_cache_the_line_names_the_place(triton, monkeypatch, tmp_path, capsys):
    from arnas.kernels import norm

    place = tmp_path / "file" / "cache"
    place.parent.write_text("no folder")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(place))
    monkeypatch.setattr(norm, "statistics", lambda _: small(triton))
    assert not kernels._built.__wrapped__(torch.device("cpu"))
    assert f"Not a directory: '{place}'), and PyTorch does their work" in capsys.readouterr().err


def test_what_triton_compiles_is_told_and_what_it_has_kept_is_not(triton, monkeypatch, tmp_path, capsys):
    from arnas.kernels import norm

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(norm, "statistics", lambda _: small(triton))
    told = []
    for _ in ("a run", "a later one"):
        monkeypatch.setattr(triton.knobs.compilation, "listener", None)
        assert kernels._built.__wrapped__(torch.device("cpu"))
        told.append(capsys.readouterr().err)
    assert told[0].count("\n") == 1 and f"keeps them in {tmp_path}." in told[0]
    assert told[1] == ""


def test_of_many_kernels_a_line_is_told_every_few_seconds(triton, monkeypatch, capsys):
    from arnas.kernels import compiling

    monkeypatch.setattr(triton.knobs.compilation, "listener", None)
    compiling.tell()
    for second in range(12):
        monkeypatch.setattr(compiling.time, "monotonic", lambda now=second: now)
        triton.knobs.compilation.listener(cache_hit=False, times=None)
        triton.knobs.compilation.listener(cache_hit=True, times=None)
    counts = re.findall(r"(\d+) are compiled by now", capsys.readouterr().err)
    assert counts == ["6", "11"]


def test_a_listener_of_somebody_else_stays(triton, monkeypatch):
    from arnas.kernels import compiling

    monkeypatch.setattr(triton.knobs.compilation, "listener", print)
    compiling.tell()
    assert triton.knobs.compilation.listener is print


def test_a_triton_without_a_listener_is_no_error(triton, monkeypatch):
    from arnas.kernels import compiling

    monkeypatch.delattr(triton, "knobs")
    compiling.tell()


def test_a_kernel_that_spills_would_be_noticed(triton, tmp_path):
    constants = IMAGE | {"K": 5, "BLOCK": 1024} | NO_NORM
    assert spills(resources(triton, "depthwise", "_depthwise", constants, 1, "fp32", tmp_path / "kernel.cubin"))


@pytest.mark.parametrize("number", ["fp32", "fp64"])
def test_compiled_for_a_gpu_they_keep_their_numbers_in_registers(triton, number, tmp_path):
    """A kernel that spills reads and writes the memory more often than its bytes say."""
    spilled = {}
    for file, name, constants, warps in COMPILED:
        usage = resources(triton, file, name, constants, warps, number, tmp_path / "kernel.cubin")
        if spills(usage):
            spilled[f"{file}.{name}", str(constants)] = usage
    assert spilled == {}


def spills(usage):
    (stack,) = re.findall(r"STACK:(\d+)", usage)
    return int(stack) > 0


def small(triton):
    return compiled(triton, "norm", "_statistics", {"PLANE": 4, "BLOCK": 16, "EPS": 1e-5}, 4, "fp32")


def resources(triton, file, name, constants, warps, number, cubin):
    """What one kernel needs on an H100, in the words of cuobjdump."""
    cubin.write_bytes(compiled(triton, file, name, constants, warps, number).asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, "-res-usage", cubin], check=True, capture_output=True, text=True).stdout


def compiled(triton, file, name, constants, warps, number):
    """One kernel for an H100."""
    import importlib

    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"arnas.kernels.{file}"), name)

    def kind(argument):
        if argument in constants:
            return "constexpr"
        return "i32" if argument in COUNTS else f"*{number}"

    signature = {argument: kind(argument) for argument in kernel.arg_names}
    values = {(kernel.arg_names.index(constant),): value for constant, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
