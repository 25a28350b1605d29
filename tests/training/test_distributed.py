"""Several processes end where one ends: in double precision, where rounding does not hide a mistake."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from training import processes

from arnas import runtime
from arnas.checkpoints import CheckpointStore
from arnas.config import Retrain
from arnas.errors import InvalidInput, ProcessLost
from arnas.space.genotype import Genotype, document
from arnas.stages import retrain
from arnas.training import distributed

SETTINGS = Retrain(
    seed=3, channels=2, layout="D1 R1", epochs=3, batch_size=11, attack_steps=2, selection_steps=2, crop_padding=1,
    cutout=2, drop_path=0.3, auxiliary_weight=0.4, weight_averaging=0.5, learning_rate=0.5, epsilon=16 / 255,
)  # fmt: skip
LOSSES = ("natural", "pgd_at", "trades", "mart")
STEPS = 3 * (54 // 11)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """A training by every loss; the genotype never looks at the cell before the last, so parameters are unused."""
    node = [["sep_conv_3x3", 1], ["skip_connect", 1]]
    cell = [node, [["dil_conv_3x3", 2], ["max_pool_3x3", 1]], node, [["avg_pool_3x3", 3], ["sep_conv_5x5", 2]]]
    genotype = tmp_path_factory.mktemp("genotype") / "genotype.json"
    cells = Genotype.from_json({kind: cell for kind in ("accurate", "reduce", "robust")}, "test")
    genotype.write_text(json.dumps(document(cells, "test", None, {})))
    settings = SETTINGS.model_copy(update={"architecture": "searched"})
    return [
        {"name": loss, "settings": settings.model_copy(update={"loss": loss}), "genotype": genotype} for loss in LOSSES
    ]


@pytest.fixture(scope="module")
def alone(noise, jobs, tmp_path_factory):
    """The folder of the models that one process trains, and what it returned."""
    folder = tmp_path_factory.mktemp("alone")
    returned = distributed.launch("alone", 1, processes.train, noise, folder, jobs)
    assert any(0 < figures["best_robust"] < figures["best_clean"] < 1 for figures in returned), "the hold-out says much"
    return folder, returned


def require_equal(one, other):
    """The models in two folders are the same but for rounding: all weights and buffers, and every epoch's record."""
    for which in ("best", "last"):
        first, second = (load_file(folder / f"{which}.safetensors") for folder in (one, other))
        for name, tensor in first.items():
            tolerance = 1e-10 * tensor.double().abs().max().item()
            torch.testing.assert_close(second[name], tensor, rtol=0, atol=tolerance, msg=f"{which} {name}")
    first, second = (json.loads((folder / "history.json").read_text())["epochs"] for folder in (one, other))
    assert [pytest.approx(record, rel=1e-10) for record in first] == second


@pytest.mark.parametrize(("count", "losses"), [(2, LOSSES), (3, LOSSES[1::2])])
def test_several_processes_end_with_the_weights_of_one(noise, jobs, alone, tmp_path, count, losses):
    chosen = [job for job in jobs if job["name"] in losses]
    returned = distributed.launch("several", count, processes.train, noise, tmp_path, chosen)
    for several in returned:
        (one,) = (figures for figures in alone[1] if figures["name"] == several["name"])
        assert {**several, "digest": ""} == {**one, "digest": ""}
        require_equal(alone[0] / one["name"], tmp_path / one["name"])


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_killed_and_resumed_by_another_number_of_processes_it_ends_the_same(
    noise, jobs, alone, tmp_path, before, after
):
    job = jobs[1] | {"interval": 0.0}
    with pytest.raises(ProcessLost, match=f"process {before - 1} of {before} .* killed by SIGKILL"):
        event = {"event": (before - 1, STEPS // 2 + 1, signal.SIGKILL)}
        distributed.launch("retrain net", before, processes.train, noise, tmp_path, [job | event])
    assert not (tmp_path / job["name"]).exists()
    state = CheckpointStore(tmp_path / "c").load(next((tmp_path / "c").iterdir()).stem)
    assert 0 < state["progress"]["epoch"] + state["progress"]["step"] < STEPS
    distributed.launch("retrain net", after, processes.train, noise, tmp_path, [job])
    require_equal(alone[0] / job["name"], tmp_path / job["name"])


def test_what_happens_in_one_process_ends_all_at_the_same_step(noise, jobs, alone, tmp_path):
    nan, stop = jobs[0] | {"event": (1, 1, "nan"), "name": "nan"}, jobs[0] | {"event": (1, 2, signal.SIGTERM)}
    returned = distributed.launch("events", 2, processes.train, noise, tmp_path, [nan, stop, jobs[0]])
    assert returned[:2] == ["Diverged", "Interrupted"]
    assert not (tmp_path / "nan").exists()
    require_equal(alone[0] / "natural", tmp_path / "natural")


def test_an_error_of_the_stage_comes_out_of_the_processes_as_one_sentence(noise, tmp_path, capfd):
    settings = SETTINGS.model_copy(update={"cutout": 8})
    places = {"checkpoints": tmp_path / "c", "device": "cpu"}
    with pytest.raises(InvalidInput, match=r"^cutout 8 covers images of 8 pixels; choose less than 8\.$"):
        retrain.run(noise, tmp_path / "out", settings, name="net", processes=2, **places)
    assert capfd.readouterr() == ("", "")
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_process_that_leaves_without_a_word_is_told_by_torchrun():
    with pytest.raises(ChildFailedError, match=r"exitcode *: 1"):
        distributed.launch("several", 2, processes.leave)


def test_processes_share_the_cores_and_the_environment_is_as_before(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert distributed.launch("several", 2, processes.threads) == "3"
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(("patience", "seconds"), [("60", 1800), ("3600", 4200)])
def test_a_process_waits_for_the_others_longer_than_the_longest_outage(monkeypatch, patience, seconds):
    started = mock.Mock()
    monkeypatch.setattr(torch.distributed, "init_process_group", started)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "arnas")
    monkeypatch.setenv("ARNAS_S3_PATIENCE", patience)
    with distributed.joined(torch.device("cpu")):
        assert started.call_args.kwargs["timeout"].total_seconds() == seconds


def test_while_the_store_is_away_the_processes_wait_for_it_together(noise, jobs, alone, tmp_path, own_minio, capfd):
    """One of them kills it between two checkpoints; it is started again a second later."""

    def restart():
        own_minio.process.wait()
        time.sleep(1)
        own_minio.start()

    outage = threading.Thread(target=restart)
    outage.start()
    job = jobs[1] | {"interval": 0.0, "checkpoints": "s3://bucket/c"}
    job |= {"event": (0, 4, signal.SIGKILL), "victim": own_minio.process.pid}
    distributed.launch("several", 2, processes.train, noise, tmp_path, [job])
    outage.join()
    assert "answers again" in capfd.readouterr().err
    require_equal(alone[0] / job["name"], tmp_path / job["name"])


def test_more_processes_than_a_batch_has_images_are_refused(noise, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 12)
    with pytest.raises(InvalidInput, match="batch_size 11 is too small for 12 processes"):
        retrain.run(noise, tmp_path / "out", SETTINGS, name="net", checkpoints=tmp_path / "c", device="cpu")


def test_interrupted_from_the_terminal_it_saves_once_and_the_same_command_goes_on(noise, tmp_path):
    options = SETTINGS.model_dump(include={"channels", "layout", "batch_size", "attack_steps", "cutout"})
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "arnas.cli", "retrain", noise, tmp_path / "out", "--device=cpu", "--processes=2"]
    command += [*words, "--architecture=arnas-cifar10", "--model=searched", "--epochs=40"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for line in process.stderr:
            if "loss=" in line:
                break
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and to the processes
        output, errors = process.communicate()
    assert (process.returncode, output) == (130, ""), errors
    said = "retrain searched was interrupted; its state is saved and the same command goes on from there."
    assert [line for line in errors.splitlines() if "was interrupted" in line] == [said]
    (checkpoint,) = (tmp_path / ".checkpoints").iterdir()
    done = CheckpointStore(checkpoint.parent).load(checkpoint.stem)["progress"]
    assert done["epoch"] * 4 + done["step"] > 0
    assert not (tmp_path / "out").exists()


@given(count=st.integers(0, 40), several=st.integers(1, 7), seed=st.integers(0, 9))
def test_shares_and_what_is_drawn_for_them_are_those_of_the_whole_batch(count, several, seed):
    parts, drawn = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "size", lambda: several)
        for process in range(several):
            patch.setattr(distributed, "rank", lambda: process)  # noqa: B023
            runtime.seed(seed)
            with distributed.share(count) as part:
                parts.append(range(count)[part])
                drawn.append(runtime.draw(torch.rand_like, torch.empty(len(parts[-1]), 2)))
    assert [index for part in parts for index in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    runtime.seed(seed)
    assert torch.equal(torch.cat(drawn), torch.rand(count, 2))


def test_batch_norm_over_processes_is_torchs_where_there_is_one():
    """Outputs, gradients, running statistics, and their use in evaluation."""
    torch.manual_seed(0)
    results = []
    start = torch.randn(6, 3, 4, 5, dtype=torch.float64) + 10
    weight, bias, seen = torch.rand(3).double(), torch.rand(3).double(), torch.randn_like(start)
    for kind in (nn.BatchNorm2d, distributed.BatchNorm):
        norm, images = kind(3).double(), start.clone().requires_grad_()
        norm.load_state_dict(norm.state_dict() | {"weight": weight, "bias": bias})
        for _ in range(2):
            output = norm(images)
        (output * seen).sum().backward()
        results.append([output, images.grad, norm.weight.grad, norm.bias.grad, norm.eval()(images), *norm.buffers()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-11)
