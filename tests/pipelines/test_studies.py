"""`python -m pipelines study`: refusals, variants, and two studies that are killed in their middle and go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import kfp.local
import pytest
import yaml
from kfp.dsl.executor_main import executor_main

from arnas import artifacts, config
from arnas.data import image_set
from arnas.errors import InvalidInput
from arnas.space.layout import Layout
from pipelines import local, placement, studies
from pipelines.__main__ import main
from pipelines.generate import ROOT, build
from pipelines.studies import STUDIES

SIDES = {"digits": 8, "glyphs": 16, "cifar10": 32, "tiny-imagenet": 64}  # pixels, as stored
# AutoAttack takes long and has tests of its own
QUICK = ["search.epochs=1", "retrain.epochs=1", "prepare.train_limit=128", "whitebox.autoattack_images=0"]


# ------------------------------------------------------------------------------------------------------------ variants


@pytest.mark.parametrize("preset", config.presets())
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_variants_of_its_own_that_every_preset_allows(name: str, preset: str) -> None:
    found = studies.require(name, studies.told(name, []), preset, studies.common(name, {}))
    assert len({each.model_dump_json() for each in found}) == len(found) >= 2
    for each in found:
        side = each.prepare.image_size or SIDES[each.prepare.dataset]
        image_set.require_fit(each.retrain, (3, side, side), each.retrain.cutout)
        if STUDIES[name].searches:
            image_set.require_fit(each.search, (3, side, side))


def test_the_layouts_of_the_placement_study_begin_with_the_papers() -> None:
    assert STUDIES["placement"].variants[0]["retrain.layout"] == str(Layout.paper(8))


def test_a_layout_is_taken_as_it_is_written() -> None:
    (variant,) = studies.told("placement", [" A1 A2  R2 R4"])
    assert variant == {"name": "A1 A2 R2 R4", "retrain.layout": "A1 A2 R2 R4"}


def test_values_become_variants(tmp_path: Path) -> None:
    file, folders = tmp_path / "mine.json", [tmp_path / "a", tmp_path / "b"]
    file.write_text("{}")
    for folder in folders:
        folder.mkdir()
    place = "minio://bucket/v2/genotype"
    assert studies.told("comparison", ["resnet18", str(file), place]) == [
        {"name": "resnet18", "retrain.architecture": "resnet18"},
        {"name": "mine", "retrain.architecture": str(file)},
        {"name": "genotype", "retrain.architecture": place},
    ]
    assert studies.told("transfer", ["digits", *(f"folder={folder}" for folder in folders)]) == [
        {"name": "digits", "prepare.dataset": "digits", "prepare.image_size": 32},
        {"name": "folder a", "prepare.dataset": "folder", "prepare.path": str(folders[0])},
        {"name": "folder b", "prepare.dataset": "folder", "prepare.path": str(folders[1])},
    ]
    assert studies.told("seeds", ["7"]) == [{"name": "seed 7", "seed": 7}]
    assert [variant["seed"] for variant in studies.told("seeds", [], 40)] == list(range(40))


def test_the_ablation_replaces_each_part_of_the_search_and_begins_with_the_published_one() -> None:
    variants = studies.told("ablation", [])
    found = studies.require("ablation", variants, "cifar10", {})
    assert found[0].search == config.Search()
    assert {each.search.combination for each in found} == {"min_norm", "natural", "adversarial", "sum"}
    assert {each.search.hypergradient for each in found} == {"finite_difference", "exact", "first_order"}
    assert len({each.search.adversarial_weight for each in found}) == 3
    for each in found[1:]:  # one thing at a time
        assert sum(value != getattr(config.Search(), key) for key, value in each.search.model_dump().items()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["placement", "A1 X2"], r"'A1 X2' is no layout; write cells such as 'A1 D2 R2'"),
        (["placement", "A1 D1", "A1 D1"], r"placement are A1 D1, A1 D1; give each one name of its own"),
        (["placement", "--genotype", "arnas-mnist"], r"retrain\.architecture = 'arnas-mnist'"),
        (["placement", "--count", "3"], r"--count 3 is a number of seeds"),
        (["seeds", "--count", "0"], r"--count 0 is a number of seeds, from 1"),
        (["seeds", "1", "--count", "2"], r"by values, by --count or by --variants; give one"),
        (["seeds", "one"], r"'one' is no seed"),
        (["seeds", "--genotype", "arnas-cifar10"], r"finds or varies its architectures; leave --genotype out"),
        (["ablation", "first_order"], r"ablation takes no values, but first_order"),
        (["comparison", "resnet19"], r"Variant resnet19: .*retrain\.architecture = 'resnet19'"),
        (["comparison", "searched"], r"Variant searched: the study comparison does not search"),
        (["transfer", "digits", "cifar10"], r"section prepare, cifar10, is not bundled; .* NAME=PATH"),
        (["transfer", "cifar10=/no/such"], r"There is no /no/such; NAME=PATH must name"),
        (["seeds", "--data", "/no/such"], r"There is no /no/such; --data must name"),
        (["seeds", "--set", "search.epoch=3"], r"no setting search\.epoch; near it are epochs"),
        (["seeds", "--variants", "/no/such.yaml"], r"/no/such\.yaml cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_before_anything_starts(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", *words, "--preset", "smoke", "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert re.search(sentence, message)
    assert message.count("\n") == 1 and not (tmp_path / "out").exists()


def test_variants_may_stand_in_a_file(tmp_path: Path) -> None:
    variants = [{"name": "wide", "retrain.channels": 4}, {"name": "long", "retrain": {"epochs": 3}}]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(variants))
    assert studies.told("placement", [], file=str(tmp_path / "mine.yaml")) == variants
    (tmp_path / "mine.yaml").write_text("name: wide")
    with pytest.raises(InvalidInput, match="must be a list of mappings such as"):
        studies.require("placement", studies.told("placement", [], file=str(tmp_path / "mine.yaml")), "smoke", {})


def test_what_is_told_beats_what_a_study_has_by_default() -> None:
    assert studies.common("placement", {"retrain.auxiliary_weight": 0.2}, "s3://bucket/genotype") == {
        "retrain.architecture": "s3://bucket/genotype",
        "retrain.auxiliary_weight": 0.2,
    }


# -------------------------------------------------------------------------------------------------- what a watcher sees


def test_tasks_are_told_apart_by_their_variants_also_after_one_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    view = local._View(["a", "b"], ("search", "derive", "retrain", "whitebox", "merge"))
    ends = [("prepare", True), ("search", True), ("derive", True), ("retrain-2", False), ("search-2", True)]
    for task, success in [*ends, ("retrain-3", True), ("study", True)]:
        view.show(f"Executing task '{task}'")
        view.show("arnas.errors.InvalidInput: It is wrong.")
        view.show(f"Task '{task}' finished with status {'SUCCESS' if success else 'FAILURE'}")
    begun = [line.removesuffix(" ...") for line in capsys.readouterr().out.splitlines() if line.endswith("...")]
    assert begun == ["prepare", "search a", "derive a", "retrain a", "search b", "retrain b", "study"]
    assert view.explained() == ["retrain a failed: It is wrong."]


# ------------------------------------------------------------------------------------------------------ from end to end


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function of a study: runs its pipeline with tasks of this process; returns study.json and the page.

    What KFP adds by starting Python for every task is tested by the studies that are killed.
    """

    def task(full_command: list[str], env_vars: Any = None) -> int:
        *_, source, asked, given, which, function = full_command
        file = tmp_path / f"task_{uuid4().hex}.py"
        file.write_text(source)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["", "--component_module_path", str(file), asked, given, which, function])
            executor_main()
        return 0

    def run(name: str, values: list[str], file: str | None = None) -> tuple[Any, str]:
        about = {"variants": studies.told(name, values, file=file), "preset": "smoke", "device": "cpu"}
        changes = config.assignments([*QUICK, "whitebox.curve_images=0", "whitebox.corruption_images=0"])
        about |= {"overrides": studies.common(name, changes), "checkpoints": str(tmp_path / "checkpoints")}
        site = placement.load().model_copy(update={"parallelism": 1, "preflight": False})
        kfp.local.init(kfp.local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "runs"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"kfp\.")  # limits and images have no part here
            outputs = build(name, site)(**about, gpus="0", endpoint="").outputs
        return json.loads(Path(outputs["result"].path).read_text()), Path(outputs["report"].path).read_text()

    monkeypatch.setattr("kfp.local.subprocess_task_handler.run_local_subprocess", task)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # KFP's loops are threads, where nobody may ask for signals
    return run


def test_a_comparison_has_the_black_box_matrix_and_the_front_of_its_architectures(run: Callable[..., Any]) -> None:
    found, page = run("comparison", ["arnas-cifar10", "resnet18"])
    names = ["arnas-cifar10", "resnet18"]
    assert [row["name"] for row in found["variants"]] == names
    assert [row["architecture"] for row in found["variants"]] == ["genotype", "resnet18"]
    assert list(found["blackbox"]) == [*names, "square"]
    assert all(list(row) == names for row in found["blackbox"].values())
    for row in found["variants"]:
        assert [check["check"] for check in row["checks"]].count("black box") == 2  # the other's examples, and Square
    assert "made on (source)" in page and re.search(r"no other is better in one|the whole Pareto front", page)


def test_a_transfer_has_one_table_over_its_data_sets_and_ranks_none_of_them(run: Callable[..., Any]) -> None:
    found, page = run("transfer", ["digits", "glyphs"])
    assert [row["dataset"] for row in found["variants"]] == ["digits", "glyphs"]
    assert len({row["genotype"]["digest"] for row in found["variants"]}) == 1 and found["pairs"] == []
    rows = re.findall(r'<th scope="row">(\w+)</th>', page[: page.index("</table>")])
    assert rows == ["digits", "glyphs"] and "not to be ranked" in page


def test_an_ablation_has_a_row_for_each_search_and_pools_none_of_their_genotypes(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    variants = [{"name": "as published"}, {"name": "natural only", "search.combination": "natural"}]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(variants))
    found, page = run("ablation", [], str(tmp_path / "two.yaml"))
    told = [(row["name"], row["changes"]) for row in found["variants"]]
    assert told == [("as published", {}), ("natural only", {"search.combination": "natural"})]
    assert all(row["cells"] and row["architecture"] == "genotype" for row in found["variants"])
    assert len(found["pairs"]) == 2 and found["operations"] is None and "What the searches chose" not in page


# ------------------------------------------------------------------------------------------------- killed, and resumed


def start(output: Path, *words: str) -> subprocess.Popen[str]:
    settings = [part for change in QUICK for part in ("--set", change)]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", "study", *words, "--preset", "smoke", "--output", str(output), *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def killed_and_resumed(output: Path, at: str, *words: str) -> tuple[list[str], dict[str, Any]]:
    """Lines of a study that was killed when it said so, and was started again; and what it found."""
    process = start(output, *words)
    assert process.stdout is not None
    with process.stdout as stream:
        assert any(re.search(at, line) for line in stream)
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 20
    while True:  # its tasks end with it
        with subprocess.Popen(["ps", "-Awwo", "stat=,args="], stdout=subprocess.PIPE, text=True) as listed:
            lines = listed.communicate()[0].splitlines()
        if not [line for line in lines if str(output) in line and not line.startswith("Z")]:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (output / "study.json").exists()
    process = start(output, *words)
    said = process.communicate()[0].splitlines()
    assert process.returncode == 0, "\n".join(said)
    found: dict[str, Any] = json.loads((output / "study.json").read_text())
    for row in found["variants"]:
        model = artifacts.read(output / "models" / row["name"], "model")
        assert (model["digest"], model["content"]["name"]) == (row["model_digest"], row["name"])
    assert (output / "study.html").read_text().lstrip().lower().startswith("<!doctype html")
    assert len((output / "study.csv").read_text().splitlines()) == 1 + len(found["variants"])
    return said, found


def reused(said: list[str]) -> list[str]:
    return [match[1] for line in said if (match := re.match(r"\[(.+?)\] reused", line))]


@pytest.mark.timeout(1200)
def test_a_placement_study_of_three_layouts_computes_after_a_kill_only_what_was_missing(tmp_path: Path) -> None:
    layouts = ["A1 D1 R1", "R1 D1 A1", "A1 A2 R2 R4"]
    said, found = killed_and_resumed(tmp_path / "out", r"^retrain R1 D1 A1 \.\.\.", "placement", *layouts)
    assert reused(said) == ["retrain A1 D1 R1", "whitebox"]  # a round of the loop is finished before the next
    assert [(row["name"], row["layout"]) for row in found["variants"]] == [(layout, layout) for layout in layouts]
    assert len({row["genotype"]["digest"] for row in found["variants"]}) == 1
    assert len(found["pairs"]) == 6 and found["operations"] is None and found["warnings"] == []
    for layout in layouts:
        assert any(line.startswith(layout) and "%" in line for line in said)


@pytest.mark.timeout(1200)
def test_a_study_of_four_seeds_goes_on_after_a_kill_and_tells_of_all_of_them(tmp_path: Path) -> None:
    said, found = killed_and_resumed(tmp_path / "out", r"^search seed 1 \.\.\.", "seeds", "--count", "4")
    assert [name for name in reused(said) if name != "whitebox"][:2] == ["search", "retrain seed 0"]
    assert [row["changes"] for row in found["variants"]] == [{"seed": seed} for seed in range(4)]
    assert found["accuracy"]["clean"]["seeds"] == 4
    assert {each["edges"] for kind in found["operations"].values() for each in kind.values()} == {4 * 8}
    assert 0 < found["kinds_differ"]["p"] <= 1 and set(found["agreement"]) == set(found["operations"])
    assert any(line.startswith("clean: mean") for line in said)
