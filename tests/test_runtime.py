import io

import pytest
import torch

from arnas import runtime
from arnas.errors import Diverged, InvalidInput


def test_a_device_that_is_absent_is_an_error_that_names_those_present():
    with pytest.raises(InvalidInput, match=r"device 'cuda:99' is not here; this machine has cpu"):
        runtime.device("cuda:99")


def test_a_promised_gpu_that_is_absent_is_an_error_even_where_the_device_is_left_open():
    with pytest.raises(InvalidInput, match=r"99 GPU\(s\) were asked for and \d+ are visible"):
        runtime.prepare("auto", gpus=99)


def test_auto_takes_what_there_is():
    assert runtime.device("auto").type == ("cuda" if torch.cuda.is_available() else runtime.device("auto").type)
    assert runtime.device("cpu") == torch.device("cpu")


def draw(*place):
    runtime.seed(*place)
    return torch.rand(4).tolist()


def test_random_numbers_are_a_function_of_the_place():
    places = [(0, "search", 1, 2), (0, "search", 12), (0, "search", 2, 1), (1, "search", 1, 2), (0, "retrain", 1, 2)]
    assert [draw(*place) for place in places] == [draw(*place) for place in places]
    assert len({tuple(draw(*place)) for place in places}) == len(places)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_stops_the_stage(loss):
    with pytest.raises(Diverged, match=r"search: the loss became .* at epoch 3, step 4"):
        runtime.require_finite({"norm": 1.0, "loss": loss}, "search", "epoch 3, step 4")
    runtime.require_finite({"norm": 1.0, "loss": 0.0}, "search", "epoch 3, step 4")


def test_the_code_digest_covers_the_packages_it_names(tmp_path, monkeypatch):
    (tmp_path / "space").mkdir()
    (tmp_path / "search").mkdir()
    for name in ("runtime.py", "graphs.py", "search/loop.py"):
        (tmp_path / name).touch()
    monkeypatch.setattr("arnas.__file__", str(tmp_path / "__init__.py"))
    digests = []
    for text in ("a = 1", "a = 2"):
        (tmp_path / "space" / "code.py").write_text(text)
        digests.append([runtime.code_digest.__wrapped__(name) for name in ("space", "search")])
    assert digests[0][0] != digests[1][0] and digests[0][1] == digests[1][1]


def test_progress_in_a_log_is_whole_lines_with_an_estimate():
    log = io.StringIO()
    progress = runtime.Progress("search", 4, done=1, file=log)
    progress.advance({"loss": 1.25})
    progress.advance(count=2)
    progress.close()
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("[search]") and "1/4" in lines[0] and "4/4" in lines[-1]
    assert "\r" not in log.getvalue() and all(line.strip() for line in lines)


def test_an_origin_tells_versions_time_and_memory():
    report = runtime.Origin().report()
    assert report["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert report["seconds"] >= 0 and 50 < report["peak_memory_mib"] < 100_000 and report["device"] == "cpu"
