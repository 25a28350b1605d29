"""The table of what inexact options cost is what its script wrote, and the script runs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from arnas.config import Retrain, Search

ROOT = Path(__file__).parents[1]
specification = importlib.util.spec_from_file_location("ablation", ROOT / "benchmarks" / "ablation.py")
ablation = importlib.util.module_from_spec(specification)
specification.loader.exec_module(ablation)


def test_the_page_shows_the_committed_outcomes():
    results = json.loads((ROOT / "benchmarks" / "results" / "ablation-digits.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert f"{ablation.MARKS[0]}\n{ablation.table(results)}\n{ablation.MARKS[1]}" in page
    assert results["preset"] == "digits" and results["versions"]["torch"] and results["date"]


def test_the_first_option_is_the_default_and_every_other_choice_has_a_row():
    choices = list(ablation.OPTIONS.values())
    assert choices[0] == (Search().hypergradient, Retrain().precision)
    for place, field in enumerate((Search.model_fields["hypergradient"], Retrain.model_fields["precision"])):
        assert {choice[place] for choice in choices} == set(field.annotation.__args__)


def test_means_and_spreads_are_over_the_seeds_of_an_option():
    cells, other = {"accurate": [[["a", 0], ["b", 1]]]}, {"accurate": [[["b", 1], ["c", 0]]]}
    runs = [
        {"option": "x", "seed": 0, "clean": 0.5, "pgd20": 0.1, "cells": cells},
        {"option": "x", "seed": 1, "clean": 0.7, "pgd20": 0.3, "cells": cells},
        {"option": "y", "seed": 0, "clean": 0.5, "pgd20": 0.1, "cells": other},
        {"option": "y", "seed": 1, "clean": 0.5, "pgd20": 0.1, "cells": cells},
    ]
    results = {"runs": runs, "preset": "p", "changes": {"a": 1}, "device": "cpu", "date": "today"}
    lines = ablation.table(results | {"versions": {"torch": "1", "arnas": "2"}}).splitlines()
    assert lines[2] == "| x | 60.0% ± 14.1 | 20.0% ± 14.1 | 100% |"
    assert lines[3] == "| y | 50.0% ± 0.0 | 10.0% ± 0.0 | 75% |"
    assert "over 2 seeds" in lines[-1] and "a=1" in lines[-1]


def test_the_script_writes_outcomes_and_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{ablation.MARKS[0]}\nold\n{ablation.MARKS[1]}\nafter\n", encoding="utf-8")
    arguments = ["--preset", "smoke", "--seeds", "1", "--device", "cpu", "--output", str(tmp_path / "out")]
    arguments += ["--results", str(tmp_path / "results.json"), "--page", str(page)]
    command = [sys.executable, "-m", "benchmarks.ablation", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run(command, capture_output=True, check=True, env=environment, cwd=ROOT)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [run["option"] for run in results["runs"]] == list(ablation.OPTIONS)[:4]  # a CPU has no TF32
    assert page.read_text(encoding="utf-8").split("\n") == [
        "before", ablation.MARKS[0], *ablation.table(results).split("\n"), ablation.MARKS[1], "after", "",
    ]  # fmt: skip
