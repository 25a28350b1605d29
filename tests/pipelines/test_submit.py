"""`python -m pipelines submit`: refusals before anything is sent, what is sent, and what a follower sees."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from constant_server import Constant
from kfp.cli.cli import cli
from kfp_stand_in import Kfp

from arnas import config
from cluster import kubeflow
from pipelines import submit
from pipelines.__main__ import main
from pipelines.generate import PIPELINES, ROOT, place_of

BUNDLED = "prepare: {dataset: digits}\ntransfer: {dataset: glyphs}\n"
DIGITS = ["submit", "--preset", "digits"]


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No kubeconfig, no settings of kfp, and no waiting between two looks."""
    for name in [name for name in os.environ if name.startswith(("KF_", "KUBERNETES_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(submit, "POLL", 0.01)


def sent(*options: str, kfp: Kfp | None = None) -> dict:
    """What KFP receives from a command that succeeds."""
    with kfp or Kfp() as server:
        assert main([*DIGITS, "--endpoint", server.url, *options]) == 0
        (run,) = server.runs
        return run


# ----------------------------------------------------------------------------------------- refused, and nothing is sent


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--preset", "digit"], r"There is no preset 'digit'; name one of .*digits"),
        (["--set", "search.epoch=3"], r"no setting search\.epoch; near it are epochs"),
        (["--set", "search.epochs=0"], r"search\.epochs = 0"),
        (["--set", "search.epochs"], r"'search\.epochs' sets nothing; write KEY=VALUE"),
        (["--models", "nobody"], r"models has no 'nobody'; it has searched"),
        (["--parameter", "devise=cpu"], r"no parameter devise; near it are device"),
        (["--parameter", "device"], r"'device' sets nothing"),
        (["--parameter", "preset=digits"], r"preset is no --parameter here, since it is checked; give --preset"),
        (["--pipeline", "arnass"], r"arnass is no compiled pipeline; name arnas, placement, .*or a file"),
        (["--pipeline", str(ROOT / "pyproject.toml")], r"pyproject\.toml is no compiled pipeline"),
        (["--pipeline", str(ROOT / "arnas" / "presets" / "smoke.yaml")], r"smoke\.yaml is no compiled pipeline"),
        (
            ["--preset", "cifar10"],
            r"section prepare, cifar10, is not bundled; say .* --parameter data=s3://BUCKET/PREFIX",
        ),
        (["--set", "transfer.dataset=folder"], r"section transfer, folder, .* --set transfer\.path=s3://"),
        (["--parameter", "gpus=two"], r"arnas: gpus = 'two': .*integer"),
        (["--parameter", "gpu_pool=gold"], r"gpu_pool must be of type STRUCT"),
        (["--parameter", "shards=1/1"], r"shards must be of type LIST"),
        (["--image", "arnas:latest"], r"arnas:latest' does not say which content"),
        (["--placement", "nowhere.yaml"], r"nowhere\.yaml cannot be read"),
        (["--pipeline", "transfer", "--models", "searched"], r"transfer has no parameter models; leave --models out"),
        (["--pipeline", "seeds", "--parameter", "variants=[]"], r"variants of seeds are none; give each one name"),
        (["--pipeline", "seeds", "--parameter", "variants=[{seed: 1}]"], r"seeds must be a list of mappings such as"),
        (
            ["--pipeline", "seeds", "--parameter", "variants=[{name: a, seed: 1}, {name: a, seed: 2}]"],
            r"variants of seeds are a, a; give each one name of its own",
        ),
        (
            ["--pipeline", "placement", "--parameter", "variants=[{name: a, retrain.layot: A1}]"],
            r"Variant a: .*no setting retrain\.layot; near it are layout",
        ),
        (
            ["--pipeline", "placement", "--parameter", "variants=[{name: a, whitebox.images: 1}]"],
            r"Variant a changes whitebox\.images, but all variants are attacked alike",
        ),
        (
            ["--pipeline", "placement", "--set", "retrain.architecture=searched"],
            r"placement does not search; name a genotype",
        ),
        (
            ["--pipeline", "transfer", "--parameter", "variants=[{name: a, prepare.dataset: cifar10}]"],
            r"section prepare, cifar10, is not bundled; .*variants=\[\{name: NAME, prepare\.path: s3://",
        ),
        (["--retries", "-1"], r"--retries -1 must be 0 or more"),
        (["--retries", "2"], r"--retries 2 .* give --wait"),
        (["--pipeline-root", "minio/here"], r"--pipeline-root minio/here .* s3://BUCKET"),
    ],
)
def test_what_is_mistyped_is_refused_in_one_sentence_before_anything_is_sent(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Kfp() as server:
        assert main([*DIGITS, "--endpoint", server.url, *options]) == 2
        assert server.requests == []
    message = capsys.readouterr().err
    assert re.search(sentence, message)
    assert message.count("\n") == 1


def test_without_preset_the_presets_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit"]) == 2
    assert "Give --preset: cifar10" in capsys.readouterr().err


def test_without_any_address_it_is_said_how_to_give_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(DIGITS) == 2
    captured = capsys.readouterr()
    assert captured.err == "It is not known where KFP is; give --endpoint URL, or set KF_PIPELINES_ENDPOINT.\n"
    assert captured.out == ""


def test_the_address_may_stand_in_the_environment_as_for_kfp(monkeypatch: pytest.MonkeyPatch) -> None:
    with Kfp() as server:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.url)
        assert main(DIGITS) == 0
        assert len(server.runs) == 1


def test_an_address_where_nobody_is_ends_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DIGITS, "--endpoint", "http://127.0.0.1:9"]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"KFP at http://127\.0\.0\.1:9 does not answer \(.*\); give --endpoint URL.*\n", captured.err)
    assert captured.out == ""


@pytest.mark.parametrize("body", [b"null", b"{}", b"[]", b"<html>Sign in</html>"])
def test_what_answers_and_is_not_kfp_is_named(body: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with Constant(body) as server:
        assert main([*DIGITS, "--endpoint", server.url]) == 2
    captured = capsys.readouterr()
    assert captured.err == (f"What answers at {server.url} is not KFP's API; give its address, and sign in first.\n")


def test_the_way_to_kfp_is_one_that_also_shows_the_link(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DIGITS, "--endpoint", "http://127.0.0.1:9"]) == 2
    assert "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8888:80" in capsys.readouterr().err


@pytest.mark.parametrize("health", [{"tag_name": "2.17.0"}, {"tag_name": None, "apiServerTagName": "2.17.0"}])
def test_kfps_version_is_read_from_its_api_and_from_its_ui(health: dict) -> None:
    with Kfp(health=health) as server:
        assert kubeflow.version(kubeflow.connect(server.url)) == (2, 17, 0)


def test_a_password_in_the_address_is_refused_and_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DIGITS, "--endpoint", "http://me:planted-secret@127.0.0.1:9"]) == 2
    captured = capsys.readouterr()
    assert "must not hold a user or a password" in captured.err
    assert "planted-secret" not in captured.err + captured.out


def test_what_kfp_refuses_is_said_in_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    with Kfp(refusal="InvalidInputError: parameter gpus has a wrong type.") as server:
        assert main([*DIGITS, "--endpoint", server.url]) == 2
    assert "refuses: 400 InvalidInputError: parameter gpus has a wrong type.\n" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- what is sent


def test_the_committed_pipeline_is_sent_as_it_is() -> None:
    documents = list(yaml.safe_load_all((ROOT / "pipelines" / "arnas.yaml").read_text()))
    specification = sent()["pipeline_spec"]
    assert specification.get("pipeline_spec", specification)["deploymentSpec"] == documents[0]["deploymentSpec"]
    if len(documents) > 1:
        assert specification["platform_spec"] == documents[1]


def test_preset_settings_and_models_become_parameters_of_the_run() -> None:
    told = sent("--set", "search.epochs=3", "--set", "retrain.epsilon=4/255", "--models", "searched")["runtime_config"]
    assert told["parameters"] == {
        "preset": "digits",
        "overrides": {"search.epochs": 3, "retrain.epsilon": "4/255"},
        "models": ["searched"],
    }


def test_a_study_is_told_its_variants_and_what_all_of_them_have() -> None:
    variants = "variants=[{name: flat, retrain.layout: A1 A2 R2 R4}]"
    told = sent("--pipeline", "placement", "--parameter", variants, "--set", "retrain.epochs=3")["runtime_config"]
    assert told["parameters"] == {
        "preset": "digits",
        "variants": [{"name": "flat", "retrain.layout": "A1 A2 R2 R4"}],
        "overrides": {"retrain.architecture": "arnas-cifar10", "retrain.auxiliary_weight": 0, "retrain.epochs": 3},
    }


def test_all_models_of_the_preset_are_trained_where_none_is_named() -> None:
    assert sent()["runtime_config"]["parameters"]["models"] == list(config.load("digits").models)


def test_a_preset_of_this_machine_is_sent_as_settings(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(BUNDLED + "search: {epochs: 7}\nmodels: {resnet18: {epochs: 9}}\nwhitebox: {epsilon: 4/255}\n")
    told = sent("--preset", str(file), "--set", "seed=5")["runtime_config"]["parameters"]
    there, here = config.load(told["preset"], told["overrides"]), config.load(str(file), {"seed": 5})
    assert told["models"] == ["resnet18"]
    assert there.recipe("resnet18") == here.recipe("resnet18")
    assert there.model_dump(exclude={"models"}) == here.model_dump(exclude={"models"})


def test_parameters_arrive_as_what_the_pipeline_declares() -> None:
    told = sent("--parameter", "device=1", "--parameter", "checkpoints=s3://bucket/a=b")["runtime_config"]["parameters"]
    assert (told["device"], told["checkpoints"]) == ("1", "s3://bucket/a=b")


def test_a_number_of_gpus_stays_text_and_labels_become_a_dictionary() -> None:
    told = sent("--parameter", "gpus=2", "--parameter", "gpu_pool={pool: gpu}")["runtime_config"]["parameters"]
    assert (told["gpus"], told["gpu_pool"]) == ("2", {"pool": "gpu"})


def test_a_site_sends_its_own_image_and_placement(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("gpu_pool: {pool: gold}\n")
    image = "registry.example.org/arnas:0.1.0"
    specification = sent("--image", image, "--placement", str(tmp_path / "site.yaml"))["pipeline_spec"]["pipeline_spec"]
    executors = specification["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {image}
    assert specification["root"]["inputDefinitions"]["parameters"]["gpu_pool"]["defaultValue"] == {"pool": "gold"}


def test_data_of_the_user_is_handed_on() -> None:
    told = sent("--preset", "cifar10", "--parameter", "data=s3://data/cifar")["runtime_config"]["parameters"]
    assert told["data"] == "s3://data/cifar"


def test_more_than_kfp_takes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DIGITS, "--parameter", f"data={'x' * 10_000}"]) == 2
    assert re.search(r"parameters take 10\d\d\d characters, and KFP less than 10000", capsys.readouterr().err)


def test_place_and_account_of_the_run_are_handed_on() -> None:
    options = ["--service-account", "arnas-runner", "--pipeline-root", "s3://bucket/root", "--run-name", "first"]
    run = sent(*options, "--experiment", "defence")
    assert (run["service_account"], run["display_name"]) == ("arnas-runner", "first")
    assert run["runtime_config"]["pipeline_root"] == "s3://bucket/root"


def test_a_namespace_goes_with_a_kfp_of_several_users() -> None:
    assert sent("--namespace", "team", kfp=Kfp(multi_user=True))


def test_without_cache_no_task_is_answered_from_it_in_loops_and_nested_pipelines_neither() -> None:
    def cached(run: dict) -> list[str]:
        pipeline = run["pipeline_spec"].get("pipeline_spec", run["pipeline_spec"])
        parts = [pipeline["root"], *pipeline["components"].values()]
        tasks = [task for part in parts for task in part.get("dag", {}).get("tasks", {}).items()]
        return [name for name, task in tasks if task.get("cachingOptions", {}).get("enableCache")]

    assert {"retrain", "transfer", "search"} <= set(cached(sent()))  # so that the next line can fail
    assert cached(sent("--no-cache")) == []


# --------------------------------------------------------------------------------------- what users of kfp already type


@pytest.mark.filterwarnings("ignore::FutureWarning:kfp")
@pytest.mark.parametrize("verb", ["create", "submit"])  # KFP 2 calls it create, and knows the older name
def test_kfp_run_create_takes_the_committed_yaml(verb: str) -> None:
    with Kfp() as server:
        words = ["--endpoint", server.url, "run", verb, "-e", "defence", "-f", str(ROOT / "pipelines" / "arnas.yaml")]
        done = CliRunner().invoke(cli, [*words, "preset=digits", 'gpus="0"', 'models=["searched"]'], obj={})
        assert done.exit_code == 0, done.output
        told = server.runs[0]["runtime_config"]["parameters"]
    assert told == {"preset": "digits", "gpus": "0", "models": ["searched"]}
    assert server.runs[0]["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]


@pytest.mark.filterwarnings("ignore::FutureWarning:kfp")
@pytest.mark.parametrize("name", PIPELINES)
def test_kfp_pipeline_create_takes_the_committed_yaml(name: str) -> None:
    file = place_of(name)
    with Kfp() as server:
        done = CliRunner().invoke(cli, ["--endpoint", server.url, "pipeline", "create", "-p", name, str(file)], obj={})
        assert done.exit_code == 0, done.output
    assert list(server.uploads) == [name]
    assert file.read_bytes() in server.uploads[name]


# ------------------------------------------------------------------------------------------------ what a follower sees


def followed(
    capsys: pytest.CaptureFixture[str], states: list, *options: str, status: int = 0
) -> tuple[list[str], str, Kfp]:
    with Kfp(states) as server:
        assert main([*DIGITS, "--endpoint", server.url, "--wait", *options]) == status
    captured = capsys.readouterr()
    return [line for line in captured.out.splitlines() if "details: " not in line], captured.err, server


def test_the_links_of_experiment_and_run_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with Kfp() as server:
        assert main([*DIGITS, "--endpoint", server.url]) == 0
        assert f"{server.url}/#/runs/details/{server.runs[0]['run_id']}" in capsys.readouterr().out


def test_tasks_are_told_of_once_as_they_begin_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    states = [
        ("PENDING", {}),
        ("RUNNING", {"root-driver": "SUCCEEDED", "prepare": "PENDING"}),
        ("RUNNING", {"prepare": "RUNNING", "executor": "RUNNING"}),
        ("RUNNING", {"prepare": "RUNNING", "executor": "RUNNING"}),
        ("RUNNING", {"prepare": "SUCCEEDED", "for-loop-1": "RUNNING", "retrain#1": "RUNNING", "retrain#2": "RUNNING"}),
        ("SUCCEEDED", {"prepare": "SUCCEEDED", "retrain#1": "SUCCEEDED", "retrain#2": "SUCCEEDED"}),
    ]
    lines, errors, _ = followed(capsys, states)
    assert lines == [
        "prepare ...",
        "prepare done after 1:12",
        "retrain ...",
        "retrain 2 ...",
        "retrain done after 1:12",
        "retrain 2 done after 1:12",
        "The run succeeded.",
    ]
    assert errors == ""


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_run_that_failed_or_was_ended_has_status_1(state: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines, errors, _ = followed(capsys, [(state, {"search": "FAILED"})], status=1)
    assert lines == ["search ...", "search failed after 1:12"]
    assert errors.startswith(f"The run {state.lower()}.\n")
    assert re.search(r"kubectl -n kubeflow logs -l pipeline/runid=\S+ -c main", errors)


@pytest.mark.parametrize("kubeconfig", ["a: [", "a plain string", "[1]"])
def test_a_damaged_kubeconfig_does_not_end_the_following(
    kubeconfig: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config").write_text(kubeconfig)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    lines, errors, _ = followed(capsys, [("RUNNING", {"search": "RUNNING"}), ("SUCCEEDED", {})])
    assert (lines[-1], errors) == ("The run succeeded.", "")


def test_a_kubernetes_that_is_none_does_not_end_the_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Constant(b"<html>Welcome</html>") as server:
        config = {"current-context": "a", "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}]}
        config |= {"clusters": [{"name": "a", "cluster": {"server": server.url}}], "users": [{"name": "a", "user": {}}]}
        (tmp_path / "config").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        _, errors, _ = followed(capsys, [("RUNNING", {"search": "RUNNING"}), ("FAILED", {})], status=1)
    assert "Its failed pods are not to be found from here" in errors


def test_an_outage_is_waited_for_and_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    states = [("RUNNING", {"search": "RUNNING"}), None, 503, None, 429, ("SUCCEEDED", {"search": "SUCCEEDED"})]
    lines, _, _ = followed(capsys, states)
    assert lines[0] == "search ..."
    assert re.fullmatch(r"KFP does not answer \(.+\); the run goes on, and is asked for again\.", lines[1])
    assert lines[2:] == ["KFP answers again.", "search done after 1:12", "The run succeeded."]


def test_a_refusal_amid_the_run_ends_the_following_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    _, errors, _ = followed(capsys, [("RUNNING", {}), 401], status=2)
    assert re.fullmatch(r"KFP does not tell of run \S+: 401 upstream connect error\.\n", errors)


def test_a_failed_run_is_gone_on_with_as_often_as_told(capsys: pytest.CaptureFixture[str]) -> None:
    again = "The run failed; KFP tries its failed tasks again."
    lines, _, server = followed(
        capsys, [("FAILED", {}), ("RUNNING", {}), ("FAILED", {}), ("SUCCEEDED", {})], "--retries", "2"
    )
    assert lines == [again, again, "The run succeeded."]
    assert server.retried == [server.runs[0]["run_id"]] * 2
    assert followed(capsys, [("FAILED", {})], "--retries", "2", status=1)[0] == [again, again]


def test_a_run_of_yesterday_can_be_followed_and_an_unknown_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with Kfp() as server:
        assert main([*DIGITS, "--endpoint", server.url]) == 0
        assert main(["submit", "--endpoint", server.url, "--follow", server.runs[0]["run_id"]]) == 0
        assert len(server.runs) == 1
        assert main(["submit", "--endpoint", server.url, "--follow", "nonsense"]) == 2
    assert "KFP does not tell of run nonsense: 404 ResourceNotFoundError" in capsys.readouterr().err


def test_interrupted_it_says_that_the_run_goes_on_and_how_to_follow_it() -> None:
    with Kfp([("RUNNING", {"search": "RUNNING"})]) as server:
        words = [sys.executable, "-m", "pipelines", *DIGITS, "--endpoint", server.url, "--wait"]
        command = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        with command:
            assert command.stdout is not None and command.stderr is not None
            while "search ..." not in (line := command.stdout.readline()):
                assert line, command.stderr.read()
            command.send_signal(signal.SIGINT)
            errors = command.communicate()[1]
        run = server.runs[0]["run_id"]
    assert command.returncode == 130
    assert f"the run goes on. python -m pipelines submit --endpoint {server.url} --follow {run} follows it" in errors
    assert "Traceback" not in errors
