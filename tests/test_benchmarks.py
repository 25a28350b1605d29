"""The benchmarks at tiny size: what they write, what they refuse, and that their page is what the figures give."""

import copy
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cases, gpu, page
from benchmarks.__main__ import main

ROOT = Path(__file__).parents[1]
GENERATED = ("README.md", "ratios.svg")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder that the small run wrote, and its figures."""
    folder = tmp_path_factory.mktemp("benchmarks")
    assert main(["--small", "--device", "cpu", "--output", str(folder)]) == 0
    return folder, figures(folder)


def figures(folder):
    [path] = (folder / "results").iterdir()
    return json.loads(path.read_text())


def planted(monkeypatch, kind, make):
    """Puts a form in the place of ours."""
    monkeypatch.setitem(cases.KINDS, kind, dataclasses.replace(cases.KINDS[kind], ours=make))


def test_the_small_run_measures_every_case_and_says_where(small):
    _, result = small
    assert [case["kind"] for case in result["cases"]] == ["search", "retrain", "attack", "autoattack"]
    assert result["kind"] == "cpu" and result["versions"]["torch"] == torch.__version__.split("+")[0]
    for case in result["cases"]:
        published, ours = (case[form]["seconds"] for form in ("published", "ours"))
        assert case["float64_difference"] < 1e-9
        assert case["ratio"]["raw"] == [p / o for p, o in zip(published["raw"], ours["raw"], strict=True)]
        assert case["ours"]["images_per_second"] == case["batch"] / ours["median"]
    assert set(result["start_up"]) == {"import arnas", "arnas --help", "first search step, tiny"}


def test_the_published_step_takes_as_many_passes_as_the_paper_s(small):
    _, result = small
    passes = {case["kind"]: case["published_passes"] for case in result["cases"]}
    assert passes["search"] == {"forward": 23, "backward": 23}
    assert passes["retrain"] == {"forward": 8, "backward": 8}


def test_the_page_has_a_row_for_every_case_and_is_the_same_when_written_again(small):
    folder, result = small
    before = {name: (folder / name).read_bytes() for name in GENERATED}
    assert all(f"| {case['case']} |" in before["README.md"].decode() for case in result["cases"])
    assert main(["--page", "--output", str(folder)]) == 0
    assert {name: (folder / name).read_bytes() for name in GENERATED} == before


def test_the_page_shows_what_a_gpu_did_and_what_was_never_measured(small, tmp_path):
    _, result = small
    sides = {"launches": 27_000, "busy_seconds": 0.349, "floor_fraction": 0.27}
    whole, cut_off, failed = copy.deepcopy(result["cases"][:3])
    whole["inside"] = {"published": sides, "ours": sides}
    for side in ("published", "ours"):
        whole[side]["peak_memory_mib"] = cut_off[side]["peak_memory_mib"] = 5200
    failed = {"case": failed["case"], "kind": failed["kind"], "failed": "OutOfMemoryError: too large"}
    kernel = {"kernel": "statistics", "seconds": 1.23e-4, "bytes": 201_000_000, "bandwidth_share": 0.56}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a-gpu.json").write_text(
        json.dumps(result | {"device": "A GPU", "kind": "cuda", "cases": [whole, cut_off, failed], "kernels": [kernel]})
    )
    page.write(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    [row] = [line for line in lines if line.startswith(f"| {whole['case']} |")]
    assert row.endswith("| 27,000 → 27,000 | 0.349 s → 0.349 s | 27% → 27% | 5,200 MiB → 5,200 MiB |")
    [row] = [line for line in lines if line.startswith(f"| {cut_off['case']} |")]
    assert row.endswith("| - → - | - → - | - → - | 5,200 MiB → 5,200 MiB |")
    assert f"{failed['case']} failed: OutOfMemoryError: too large" in lines
    assert "| statistics | 123 us | 201 MB | 56% |" in lines


def test_the_committed_page_is_what_the_committed_figures_give(tmp_path):
    (tmp_path / "results").mkdir()
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        shutil.copy(file, tmp_path / "results")
    page.write(tmp_path)
    for name in GENERATED:
        written, committed = tmp_path / name, ROOT / "benchmarks" / name
        assert written.exists() == committed.exists()
        if written.exists():
            assert committed.read_text() == written.read_text(), f"write {name} anew: python -m benchmarks --page"


def test_a_form_that_is_not_equal_is_not_timed_and_the_others_are(tmp_path, monkeypatch):
    def wrong(case, device, dtype):
        form = cases.our_attack(case, device, dtype)
        return dataclasses.replace(form, outcome=lambda: [found + 1e-6 for found in form.outcome()])

    planted(monkeypatch, "attack", wrong)
    assert main(["--small", "--device", "cpu", "--only", "attack", "autoattack", "--output", str(tmp_path)]) == 1
    refused, measured = figures(tmp_path)["cases"]
    assert refused["failed"] == "ValueError: both forms differ by 1.0e-06 in float64, and that is not by rounding"
    assert "ours" not in refused and "ratio" not in refused
    assert "ratio" in measured and "failed" not in measured
    assert refused["failed"] in (tmp_path / "README.md").read_text()


def test_a_case_that_fails_keeps_its_reason_in_one_line_and_what_was_found(tmp_path, monkeypatch):
    def full(case, device, dtype):
        if dtype == torch.float32:
            raise torch.OutOfMemoryError("out of memory\nand a long story")
        return cases.our_attack(case, device, dtype)

    planted(monkeypatch, "attack", full)
    assert main(["--small", "--device", "cpu", "--only", "attack", "autoattack", "--output", str(tmp_path)]) == 1
    failed, measured = figures(tmp_path)["cases"]
    assert failed["failed"] == "OutOfMemoryError: out of memory"
    assert failed["published_passes"] == {"forward": 5, "backward": 5}
    assert "ratio" in measured


def test_a_finished_case_outlives_a_run_that_is_cut_off(tmp_path, monkeypatch):
    def stop(case, device, dtype):
        raise KeyboardInterrupt

    planted(monkeypatch, "autoattack", stop)
    with pytest.raises(KeyboardInterrupt):
        main(["--small", "--device", "cpu", "--only", "attack", "autoattack", "--output", str(tmp_path)])
    assert "ratio" in figures(tmp_path)["cases"][0]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_a_convolution_reads_and_writes_each_of_its_tensors_once(frozen):
    convolution = torch.nn.Conv2d(3, 5, 3, bias=False).requires_grad_(not frozen)
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    weight, read, written = 5 * 3 * 9, 2 * 3 * 64, 2 * 5 * 36
    # backward reads the gradient and the weight, writes the images' gradient, and for the weight's reads the images
    expected = read + weight + written + written + weight + read + (0 if frozen else read + weight)
    assert gpu.bytes_moved(lambda: convolution(images).relu().sum().backward()) == 4 * expected


def test_a_profile_names_what_took_longest():
    events = [("void cutlass::gemm<float, 3>(int)", 2.0), ("_forward", 5.0), ("void cutlass::gemm<half>(int)", 4.0)]
    assert list(gpu.longest(events).items()) == [
        ("cutlass::gemm", {"launches": 2, "seconds": 6.0}),
        ("_forward", {"launches": 1, "seconds": 5.0}),
    ]
    assert list(gpu.longest(events, count=1)) == ["cutlass::gemm"]


@pytest.mark.parametrize("code", ["import arnas", "from arnas.cli import main; main(['--help'])"])
def test_torch_is_not_loaded_where_it_is_not_needed(code):
    check = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "False"
