"""The levers: each changes what is computed and not what comes out, and the page shows what was measured of them."""

import dataclasses
import functools
import json
from collections import Counter
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from arnas.config import Search
from arnas.space.layout import Layout
from benchmarks import cases, levers, page
from benchmarks.cases import KINDS

CPU = torch.device("cpu")
PIXELS = "attacks: gradients of the pixels only"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A search of one cell, which has every operation in both strides, under the shortest attack."""
    monkeypatch.setattr(cases, "_layout", lambda case: Layout.parse("D1"))
    monkeypatch.setattr(cases, "Search", functools.partial(Search, attack_steps=1))


class Asked(TorchDispatchMode):
    """Counts what torch is asked for: operations, by the strides of their tensors, which tell the size too."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found[function, *(x.stride() for x in args if isinstance(x, torch.Tensor))] += 1
        return function(*args, **(kwargs or {}))


def computed(kind):
    """What our steps of a kind lead to, and what the first of them asked of torch."""
    asked = Asked()
    looks = iter([asked])

    def begin(*arguments):
        form = cases.begin(*arguments)

        def step(*batches):
            with next(looks, nullcontext()):
                form.step(*batches)

        return dataclasses.replace(form, step=step)

    with mock.patch.object(levers, "begin", begin):
        return levers.outcome(kind, CPU), asked.found


with_all = functools.cache(computed)


def test_steps_with_all_levers_ask_for_the_same_twice():
    assert with_all("attack")[1] == computed("attack")[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name, lever in levers.LEVERS.items() if "cpu" in lever.devices])
def test_without_a_lever_its_steps_and_no_others_compute_otherwise_and_all_lead_to_the_same(name, kind):
    lever = levers.LEVERS[name]
    with levers.without(lever):
        outcome, asked = computed(kind)
    for mine, expected in zip(outcome, with_all(kind)[0], strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-9)
    assert (asked != with_all(kind)[1]) == (kind in lever.kinds)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_gpu_s_levers_replace_is_asked_in_every_step(kind):
    only = [lever for lever in levers.LEVERS.values() if lever.devices == ("cuda",)]
    spies = {place: mock.Mock(side_effect=instead) for lever in only for place, instead in lever.off.items()}
    with levers.without(dataclasses.replace(only[0], off=spies)):
        levers.outcome(kind, CPU)
    assert [spy.called for spy in spies.values()] == [kind in lever.kinds for lever in only] == [True, True]


def test_the_small_run_measures_levers_and_refuses_one_that_changes_the_outcome(monkeypatch, tmp_path):
    wrong = levers.Lever(("attack",), ("cpu",), {"arnas.attacks.pgd.PGD._step": lambda attack, x, *_: x})
    monkeypatch.setattr(levers, "LEVERS", {PIXELS: levers.LEVERS[PIXELS], "steps": wrong})
    assert levers.main(["--small", "--device", "cpu", "--output", str(tmp_path)]) == 1
    [path] = (tmp_path / "results").iterdir()
    result = json.loads(path.read_text())
    assert path.name.startswith("levers-") and result["kind"] == "cpu" and result["threads"] == torch.get_num_threads()
    assert [(found["lever"], found["kind"]) for found in result["levers"]] == [
        (PIXELS, "search"), (PIXELS, "retrain"), (PIXELS, "attack"), ("steps", "attack"),
    ]  # fmt: skip
    *measured, refused = result["levers"]
    for found in measured:
        assert found["float64_difference"] < 1e-9
        with_it, without = (found[side]["seconds"]["raw"] for side in ("with", "without"))
        assert found["ratio"]["raw"] == [without[0] / with_it[0]]
    assert "float64 outcome differs by" in refused["failed"] and "ratio" not in refused and "without" not in refused
    shown = (tmp_path / "README.md").read_text()
    assert f"steps, {refused['case']}, failed: {refused['failed']}" in shown and f"| {PIXELS} | **" in shown


def test_the_page_shows_the_table_after_its_device_from_the_file_and_from_nothing_else(tmp_path):
    versions = {"torch": "1", "python": "2", "arnas": "3"}
    origin = {"device": "A CPU", "kind": "cpu", "threads": 2, "date": "today", "versions": versions}
    spread = {"median": 1.5, "min": 1.25, "max": 2.0, "raw": [1.25, 1.5, 2.0]}
    measured = [
        {"lever": "one", "case": "search", "ratio": spread},
        {"lever": "one", "case": "attack", "ratio": spread | {"median": 3.0, "raw": [1.25, 2.0]}},
        {"lever": "two", "case": "attack", "ratio": spread},
        {"lever": "two", "case": "search", "failed": "ValueError: other"},
    ]
    (tmp_path / "results").mkdir()
    for name, result in {
        "a": origin | {"cases": []},
        "b": origin | {"device": "B", "cases": []},
        "levers-a": origin | {"levers": measured},
    }.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(result))
    page.write(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("##")] == ["## A CPU", "### A CPU: what each lever gives", "## B"]
    table = lines.index("| without | search | attack |")
    assert lines[table - 2].startswith("today, torch 1, Python 2, arnas 3, 2 threads: ")
    assert lines[table + 2 : table + 7] == [
        "| one | **1.50x** (1.25 to 2.00) | **3.00x** (1.25 to 2.00) |",
        "| two |  | **1.50x** (1.25 to 2.00) |",
        "| pairs, at least | 3 | 2 |",
        "",
        "two, search, failed: ValueError: other",
    ]
    assert not (tmp_path / "ratios.svg").exists()
    (tmp_path / "results" / "levers-a.json").unlink()
    page.write(tmp_path)
    assert "lever" not in (tmp_path / "README.md").read_text()
