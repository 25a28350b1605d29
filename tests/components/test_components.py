"""Each component resolves its settings and calls its stage once, in the stage's own words."""

import os
import re
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from arnas import artifacts, runtime, task
from arnas.errors import InvalidInput
from arnas.stages import retrain
from pipelines.generate import COMPONENTS, ROOT

FIGURES = {"digest": "d", "clean": 0.5, "epochs": 7}
NUMBERS = {"clean": 0.5, "epochs": 7}
INPUTS = {
    "search": ["images"],
    "derive": ["supernet"],
    "retrain": ["images", "genotype"],
    "whitebox": ["network", "images"],
    "blackbox": ["images"],
    "transfer": ["genotype", "images"],
    "report": ["images", "supernet", "genotype", "blackbox"],
}
OUTPUTS = {
    "prepare": ["images"],
    "search": ["supernet", "metrics"],
    "derive": ["genotype", "drawing"],
    "retrain": ["network", "metrics"],
    "whitebox": ["evaluation", "metrics"],
    "merge": ["evaluation", "metrics"],
    "blackbox": ["evaluation", "metrics"],
    "transfer": ["network", "evaluation", "metrics"],
    "study": ["html", "result", "table", "metrics"],
    "report": ["html", "scores", "metrics"],
}
# floats, since KFP sends numbers so
OVERRIDES = {"search.epochs": 3.0, "retrain.epochs": 5.0, "whitebox.images": 6.0, "blackbox.images": 8.0}


def artifact(name: str) -> SimpleNamespace:
    return SimpleNamespace(path=f"/at/{name}", metadata={})


def call(stage: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[mock._Call, dict[str, SimpleNamespace]]:
    """Run a component's function on a stage that only notes how it is called, but insists on the real signature."""
    module = import_module(f"arnas.stages.{stage}")
    fake = mock.create_autospec(module.run, return_value=dict(FIGURES))
    given = {name: artifact(name) for name in [*INPUTS.get(stage, []), *OUTPUTS[stage]]}
    component = getattr(import_module(f"components.{stage}.component"), stage)
    overrides = {} if stage in ("derive", "merge") else {"overrides": OVERRIDES}
    with monkeypatch.context() as patched:
        patched.setattr(module, "run", fake)
        patched.setattr(task, "describe", lambda path: {"seed": 3})
        patched.setattr(artifacts, "read", lambda path, kind: f"{kind} at {path}")
        patched.setattr(retrain, "summary", lambda body: {"best_robust": 0.25, "of": body})
        component.python_func(**given, **overrides, **more)
    fake.assert_called_once()
    return fake.call_args, given


def described(figures: dict[str, Any]) -> dict[str, Any]:
    versions = ", ".join(f"{name} {version}" for name, version in runtime.versions().items())
    return {"seed": 3, "versions": versions} | figures


def test_prepare_follows_the_section_and_the_data_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    told, artifacts = call("prepare", monkeypatch, section="transfer", data="/data")
    output, settings = told.args
    assert (output, settings.path) == ("/at/images", "/data")
    assert artifacts["images"].metadata == described(FIGURES)


@pytest.mark.parametrize("data", ["", "/data"])
def test_prepare_refuses_a_section_that_describes_no_data_set(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for section in ("tranfer", "search"):
        with pytest.raises(InvalidInput, match=f"section = '{section}' describes no data set; give prepare or transf"):
            call("prepare", monkeypatch, section=section, data=data)


def test_prepare_leaves_the_path_of_the_settings_alone_where_no_data_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("prepare", monkeypatch)[0].args[1].path is None


def test_search_passes_overridden_settings_and_the_place_of_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    told, artifacts = call("search", monkeypatch, checkpoints="/keep", device="cpu")
    assert told.args[:2] == ("/at/images", "/at/supernet")
    assert told.args[2].epochs == 3
    assert told.kwargs == {"checkpoints": "/keep", "device": "cpu", "gpus": 0}
    assert artifacts["supernet"].metadata == described(FIGURES)
    assert artifacts["metrics"].metadata == NUMBERS


def test_derive_writes_genotype_and_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    told, artifacts = call("derive", monkeypatch)
    assert told == mock.call("/at/supernet", "/at/genotype", drawing="/at/drawing")
    assert artifacts["genotype"].metadata == artifacts["drawing"].metadata == described(FIGURES)


def test_retrain_follows_the_recipe_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    told, _ = call("retrain", monkeypatch)
    assert told.kwargs["genotype"] == "/at/genotype"
    assert (told.kwargs["name"], told.args[2].epochs) == ("searched", 5)


def test_retrain_works_without_a_genotype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INPUTS, "retrain", ["images"])
    assert call("retrain", monkeypatch)[0].kwargs["genotype"] is None


def test_whitebox_logs_the_numbers_as_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    told, artifacts = call("whitebox", monkeypatch)
    assert told.args[:3] == ("/at/network", "/at/images", "/at/evaluation")
    assert told.args[3].images == 6
    assert artifacts["evaluation"].metadata == described(FIGURES)
    assert artifacts["metrics"].metadata == NUMBERS


def test_merge_passes_all_shards_and_logs_accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    told, artifacts = call("merge", monkeypatch, shards=[artifact("a"), artifact("b")])
    assert told == mock.call(["/at/a", "/at/b"], "/at/evaluation")
    assert artifacts["metrics"].metadata == NUMBERS


def test_study_passes_models_evaluations_and_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = {"networks": [artifact("a"), artifact("b")], "evaluations": [artifact("c"), artifact("d")]}
    variants = [{"name": "seed 3", "seed": 3.0}]
    told, artifacts = call("study", monkeypatch, **lists, name="seeds", variants=variants)
    assert told.args == (variants, ["/at/a", "/at/b"], ["/at/c", "/at/d"], "/at/result")
    settings = told.kwargs.pop("settings")
    assert settings.search.epochs == 3
    assert told.kwargs == {"name": "seeds", "blackbox": None, "page": "/at/html", "table": "/at/table"}
    assert artifacts["result"].metadata == described(FIGURES)
    assert artifacts["html"].metadata == artifacts["table"].metadata == described(FIGURES)
    assert artifacts["metrics"].metadata == NUMBERS
    told, _ = call("study", monkeypatch, **lists, blackbox=artifact("e"))
    assert told.kwargs["blackbox"] == "/at/e"


@pytest.mark.parametrize("stage", ["search", "retrain"])
def test_a_seed_of_a_variant_takes_the_place_of_the_settings_own(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ({}, {"name": "seed 7", "seed": 7.0})
    assert [call(stage, monkeypatch, variant=variant)[0].args[2].seed for variant in given] == [0, 7]


def test_a_variant_is_trained_as_the_section_retrain_says_and_goes_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = {"name": "deep", "retrain.layout": "A1 D1 R2", "models.searched.loss": "natural"}
    told, _ = call("retrain", monkeypatch, variant=variant)
    assert told.kwargs["name"] == "deep"
    assert (told.args[2].layout, told.args[2].epochs, told.args[2].loss) == ("A1 D1 R2", 5, "pgd_at")


def test_a_variant_may_be_a_data_set_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = {"name": "digits", "prepare.dataset": "digits"}
    assert call("prepare", monkeypatch, variant=variant)[0].args[1].dataset == "digits"


def test_blackbox_passes_all_models_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    told, _ = call("blackbox", monkeypatch, networks=[artifact("a"), artifact("b")])
    assert told.args[:3] == (["/at/a", "/at/b"], "/at/images", "/at/evaluation")
    assert told.args[3].images == 8


def test_transfer_follows_the_sections_retrain_and_whitebox(monkeypatch: pytest.MonkeyPatch) -> None:
    told, _ = call("transfer", monkeypatch)
    assert told.args[:4] == ("/at/genotype", "/at/images", "/at/network", "/at/evaluation")
    assert [told.args[4].epochs, told.args[5].images] == [5, 6]


def test_transfer_describes_both_of_its_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    _, written = call("transfer", monkeypatch)
    assert written["network"].metadata == described({"best_robust": 0.25, "of": "model at /at/network"})
    assert written["evaluation"].metadata == described(FIGURES)
    assert written["metrics"].metadata == NUMBERS


@pytest.mark.parametrize("stage", ["search", "retrain", "whitebox", "blackbox", "transfer"])
def test_computing_stages_are_told_the_promised_gpus_and_where_the_store_is(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere:1")
    more = {"networks": []} if stage == "blackbox" else {}
    told, _ = call(stage, monkeypatch, gpus="2", endpoint="http://store:9000", checkpoints="s3://b/p", **more)
    assert (told.kwargs["gpus"], told.kwargs["checkpoints"]) == (2, "s3://b/p")
    assert os.environ["AWS_ENDPOINT_URL"] == "http://store:9000"


@pytest.mark.parametrize("promised", ["", "two", "-1", "1.5"])
def test_a_number_of_gpus_that_is_none_is_refused(promised: str) -> None:
    with pytest.raises(InvalidInput, match=f"gpus = '{promised}' is no number of GPUs; give 0 for none"):
        task.gpus(promised)


@pytest.mark.parametrize("transferred", [True, False])
def test_report_gathers_everything_with_or_without_a_transfer(
    transferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"transfer_network": artifact("tn"), "transfer_evaluation": artifact("te")} if transferred else {}
    lists = {"networks": [artifact("a"), artifact("b")], "evaluations": [artifact("c"), artifact("d")]}
    told, artifacts = call("report", monkeypatch, **lists, **more)
    assert told.args == ("/at/html", "/at/scores")
    assert told.kwargs["models"] == ["/at/a", "/at/b"]
    assert told.kwargs["evaluations"] == ["/at/c", "/at/d"]
    assert told.kwargs["transfer"] == (("/at/tn", "/at/te") if transferred else None)
    assert told.kwargs["settings"].search.epochs == 3
    assert artifacts["scores"].metadata == artifacts["html"].metadata == described(FIGURES)
    assert artifacts["metrics"].metadata == NUMBERS


@pytest.mark.parametrize("given", ["transfer_network", "transfer_evaluation"])
def test_report_refuses_half_a_transfer(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="transfer_network and transfer_evaluation belong together; give both"):
        call("report", monkeypatch, networks=[], evaluations=[], **{given: artifact("t")})


@pytest.mark.parametrize("stage", COMPONENTS)
def test_every_input_and_output_is_documented(stage: str) -> None:
    spec = getattr(import_module(f"components.{stage}.component"), stage).pipeline_spec.components[f"comp-{stage}"]
    for definitions in (spec.input_definitions, spec.output_definitions):
        for kind in (definitions.artifacts, definitions.parameters):
            for name, definition in kind.items():
                assert definition.description, name


def test_whole_numbers_stand_as_such_in_the_tables() -> None:
    rows = [row for file in ROOT.glob("components/*/README.md") for row in file.read_text().splitlines()]
    numbers = [row.split("|")[3].strip() for row in rows if "| whole number |" in row]
    assert numbers and all(re.fullmatch("`[0-9]+`", number) for number in numbers)


@pytest.mark.parametrize("stage", COMPONENTS)
def test_ten_parameters_at_most_and_each_says_its_default(stage: str) -> None:
    spec = getattr(import_module(f"components.{stage}.component"), stage).pipeline_spec.components[f"comp-{stage}"]
    parameters = spec.input_definitions.parameters
    assert len(parameters) <= 10
    for name, definition in parameters.items():
        value = definition.default_value
        default = re.escape(value.string_value) or "(none|what the environment says)"
        if value.HasField("number_value"):
            default = f"{value.number_value:g}"
        assert re.search(f"Default: {default}", " ".join(definition.description.split())), name
