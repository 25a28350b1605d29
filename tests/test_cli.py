"""The `arnas` program: options override the preset only where given; mistakes become one sentence and a status."""

import json
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import arnas
from arnas import cli, config, objects
from arnas.errors import Diverged, InvalidInput

COMMANDS = ("prepare", "search", "derive", "retrain", "adopt", "export", "whitebox", "blackbox", "transfer", "report")
COMMANDS += ("study", "upload", "info")


@pytest.fixture
def preset(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "seed: 4\n"
        "prepare: {dataset: digits}\n"
        "transfer: {dataset: glyphs, test_limit: 9}\n"
        "search: {epochs: 7, channels: 5, flip: false}\n"
        "retrain: {epochs: 11, loss: mart}\n"
        "models: {searched: {}, small: {channels: 3}}\n"
        "whitebox: {images: 13, epsilon: 4/255}\n"
        "blackbox: {images: 17}\n"
    )
    return str(path)


def called(stage: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> mock._Call:
    """How a command calls its stage, which is replaced by one that has the same signature."""
    module = import_module(f"arnas.stages.{stage}")
    fake = mock.create_autospec(module.run, return_value={"digest": "d"})
    monkeypatch.setattr(module, "run", fake)
    cli.main([stage, *words])
    fake.assert_called_once()
    return fake.call_args


def refused(words: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    with pytest.raises(SystemExit) as leaving:
        cli.main(words)
    assert leaving.value.code == status
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_without_options_the_preset_holds(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = called("search", ["in", "out/supernet", "--preset", preset], monkeypatch)
    assert told.args == (Path("in"), Path("out/supernet"), config.load(preset).search)
    assert told.kwargs == {"checkpoints": Path("out/.checkpoints"), "device": "auto"}


def test_only_options_that_are_given_override_the_preset(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # 50 epochs and 8/255 are the model's defaults: given, they count; not given, they do not undo the preset
    words = ["in", "out", "--preset", preset, "--epochs", "50", "--epsilon", "8/255", "--flip"]
    settings = called("search", [*words, "--checkpoints", "here", "--device", "cpu"], monkeypatch).args[2]
    base = config.load(preset).search
    assert settings == base.model_copy(update={"epochs": 50, "epsilon": 8 / 255, "flip": True})
    assert (settings.channels, settings.seed) == (5, 4)


def test_places_in_a_bucket_reach_the_stages_as_they_are(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["in", "out", "--preset", preset, "--checkpoints", "s3://bucket/prefix"]
    assert called("search", words, monkeypatch).kwargs["checkpoints"] == "s3://bucket/prefix"
    words = ["out", "--preset", preset, "--path", "s3://bucket/data"]
    assert called("prepare", words, monkeypatch).args[1].path == "s3://bucket/data"


def test_prepare_begins_with_the_section_that_is_named(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["out", "--preset", preset, "--section", "transfer", "--train-limit", "8"]
    settings = called("prepare", words, monkeypatch).args[1]
    assert (settings.dataset, settings.test_limit, settings.train_limit) == ("glyphs", 9, 8)


def test_retrain_follows_the_recipe_of_the_model(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = called("retrain", ["in", "out", "--preset", preset, "--model", "small", "--genotype", "g.json"], monkeypatch)
    assert told.args[2] == config.load(preset).recipe("small")
    assert told.args[2].channels == 3
    assert (told.kwargs["name"], told.kwargs["genotype"]) == ("small", Path("g.json"))


def test_retrain_takes_changes_of_the_preset_and_a_number_of_processes(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["in", "out", "--preset", preset, "--set", "retrain.epochs=3", 'retrain={"seed": 9, "beta": 1e-05}']
    told = called("retrain", [*words, "--processes", "2", "--epochs", "4"], monkeypatch)
    assert (told.args[2].epochs, told.args[2].seed, told.args[2].beta) == (4, 9, 1e-5)
    assert told.kwargs["processes"] == 2


def test_retrain_brings_what_lies_in_a_bucket_and_takes_the_model_there(
    preset: str, monkeypatch: pytest.MonkeyPatch, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "data").write_text("pixels")
    objects.upload(tmp_path / "images", f"{bucket}/images")
    objects.Bucket(bucket).put("genotype.json", b"cells")

    def train(images: Path, output: Path, settings: config.Retrain, **more: Any) -> dict[str, Any]:
        assert (images / "data").read_text() == "pixels"
        assert more["genotype"].read_text() == "cells"
        assert more["checkpoints"] == f"{bucket}/model-checkpoints"
        output.mkdir()
        (output / "weights").write_text("weights")
        return {"digest": "d"}

    monkeypatch.setattr("arnas.stages.retrain.run", train)
    words = ["retrain", f"{bucket}/images", f"{bucket}/model", "--genotype", f"{bucket}/genotype.json"]
    cli.main([*words, "--preset", preset])
    objects.download(f"{bucket}/model", tmp_path / "model")
    assert (tmp_path / "model" / "weights").read_text() == "weights"


def test_a_place_in_a_bucket_that_is_taken_is_refused_before_training(
    preset: str, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    objects.Bucket(bucket).put("model/weights", b"of another")
    message = refused(["retrain", "images", f"{bucket}/model", "--preset", preset], capsys)
    assert message == f"{bucket}/model holds objects already; name an empty place.\n"


def test_whitebox_has_an_argument_and_an_option_of_the_name_images(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = called("whitebox", ["model", "in", "out", "--preset", preset, "--images", "6"], monkeypatch)
    assert told.args[:3] == (Path("model"), Path("in"), Path("out"))
    assert (told.args[3].images, told.args[3].epsilon) == (6, 4 / 255)


def test_adopt_takes_a_factory_with_its_state_or_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    told = called("adopt", ["out", "--model", "a.b:c", "--state", "s.pt", "--images", "in"], monkeypatch)
    assert told.args == (Path("out"),)
    assert told.kwargs == {"images": Path("in"), "model": "a.b:c", "state": Path("s.pt"), "program": None, "name": None}
    monkeypatch.undo()
    told = called("adopt", ["out", "--program", "p.pt2", "--images", "in", "--name", "mine"], monkeypatch)
    assert (told.kwargs["program"], told.kwargs["name"], told.kwargs["model"]) == (Path("p.pt2"), "mine", None)


def test_export_takes_formats_and_the_attack_of_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["model", "out", "--images", "in", "--formats", "state", "program", "--epsilon", "4/255"]
    told = called("export", words, monkeypatch)
    assert told.args == (Path("model"), Path("out"), config.Export(epsilon=4 / 255))
    assert told.kwargs == {"images": Path("in"), "formats": ["state", "program"]}


def test_blackbox_takes_several_models(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = called("blackbox", ["in", "out", "a", "b", "--preset", preset], monkeypatch)
    assert told.args == ([Path("a"), Path("b")], Path("in"), Path("out"), config.load(preset).blackbox)


def test_transfer_takes_settings_of_training_and_of_attacks(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["g", "in", "model", "scores", "--preset", preset, "--retrain.epochs", "2", "--whitebox.images", "3"]
    told = called("transfer", words, monkeypatch)
    assert told.args[:4] == (Path("g"), Path("in"), Path("model"), Path("scores"))
    assert (told.args[4].epochs, told.args[4].loss) == (2, "mart")
    assert (told.args[5].images, told.args[5].epsilon) == (3, 4 / 255)


def test_study_takes_models_of_any_origin_as_they_are(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["s.json", "--models", "a", "b", "--evaluations", "c", "d", "--page", "p.html", "--preset", preset]
    told = called("study", [*words, "--blackbox", "black", "--set", "whitebox.images=5"], monkeypatch)
    assert told.args == ([], [Path("a"), Path("b")], [Path("c"), Path("d")], Path("s.json"))
    files = {key: told.kwargs[key] for key in ("page", "table", "blackbox", "name")}
    assert files == {"page": Path("p.html"), "table": None, "blackbox": Path("black"), "name": "comparison"}
    assert told.kwargs["settings"] == config.load(preset, {"whitebox.images": 5})


def test_derive_and_report_pass_on_what_they_are_given(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = called("derive", ["in", "out", "--drawing", "cells.svg"], monkeypatch)
    assert told == mock.call(Path("in"), Path("out"), drawing=Path("cells.svg"))
    words = ["r.html", "s.json", "--images", "i", "--models", "a", "b", "--evaluations", "c", "d"]
    words += ["--transfer", "tm", "te", "--preset", preset, "--set", "search.epochs=3"]
    told = called("report", words, monkeypatch)
    assert told.args == (Path("r.html"), Path("s.json"))
    assert told.kwargs["models"] == [Path("a"), Path("b")]
    assert told.kwargs["evaluations"] == [Path("c"), Path("d")]
    assert told.kwargs["transfer"] == (Path("tm"), Path("te"))
    assert told.kwargs["supernet"] is None
    assert told.kwargs["settings"].search.epochs == 3


def test_a_command_prints_what_its_stage_returns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called("derive", ["in", "out"], monkeypatch)
    assert json.loads(capsys.readouterr().out) == {"digest": "d"}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["search", "in", "out", "--epochs", "0"], ["--epochs 0:", "greater than or equal to 1"]),
        (["search", "in", "out", "--epsilon", "9/8"], ["--epsilon 9/8:", "outside [0, 1]"]),
        (["search", "in", "out", "--hypergradient", "guess"], ["--hypergradient guess:", "'exact'"]),
        (["search", "in", "out", "--epoch", "3"], ["--epoch", "--epochs"]),
        (["search", "in", "out", "--preset", "nope"], ["no preset 'nope'"]),
        (["search", "in"], ["OUTPUT"]),
        (["serch"], ["serch", "search"]),
        (["transfer", "g", "i", "m", "e", "--retrain.epochs", "0"], ["--retrain.epochs 0:"]),
        (["info", "--channels", "0", "arnas-cifar10"], ["--channels", "0"]),
        (["info", "no-such-genotype"], ["no-such-genotype"]),
        (["info"], ["resnet18"]),
        (["derive", "/no/such/supernet", "out"], ["/no/such/supernet"]),
        (["retrain", "in", "out", "--model", "nobody"], ["no 'nobody'"]),
    ],
)
def test_a_mistake_becomes_one_sentence_that_names_it(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(words, capsys)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (InvalidInput("It is too small."), 2, "It is too small."),
        (Diverged("The loss became nan."), 3, "The loss became nan."),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_what_stops_a_stage_becomes_a_sentence_and_a_status(
    error: BaseException,
    status: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(import_module("arnas.stages.derive"), "run", run)
    assert sentence in refused(["derive", "in", "out"], capsys, status)


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("arnas.stages.derive"), "run", mock.Mock(side_effect=ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        cli.main(["derive", "in", "out"])


def test_info_counts_the_published_network(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--channels", "64", "--layers", "20", "--classes", "10", "--image-size", "32"]
    cli.main(["info", "arnas-cifar10", *sizes, "--json"])
    described = json.loads(capsys.readouterr().out)
    assert round(described["parameters"] / 1e6, 3) == 4.520
    assert round(described["macs"] / 1e9, 3) == 1.240


def test_info_counts_the_supernet_of_the_reference_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["info", "--supernet", "--json"])
    described = json.loads(capsys.readouterr().out)
    assert round(described["parameters"] / 1e6, 3) == 1.883
    assert round(described["macs"] / 1e9, 3) == 0.461


@pytest.mark.parametrize("words", [["arnas-cifar10"], ["resnet18"], ["--supernet"]])
def test_info_reads_well_without_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["info", *words])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["network", "layout", "parameters", "multiply-accumulates"]
    assert ("A1 A1" in lines[1]) == (words != ["resnet18"])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example_and_explains_every_argument(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert f"Example: arnas {command} " in text
    assert "None" not in text
    for line in text.splitlines():
        if line.startswith("│ *"):
            assert len(line.strip("│ *").replace("[required]", "").split()) > 4, line  # a name and a sentence


def test_version_and_help_come_at_once_since_torch_stays_away() -> None:
    code = "import sys, arnas.cli; arnas.cli.main(['--help']); assert not {'torch', 'kfp'} & set(sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 1.0  # 0.25 s alone on a machine, 0.5 s on a busy one; torch takes 2 s
    said = subprocess.run([sys.executable, "-m", "arnas.cli", "--version"], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == arnas.__version__
