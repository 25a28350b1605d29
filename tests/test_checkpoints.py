import io
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import minio_server
import pytest
import torch
import urllib3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arnas import checkpoints, objects
from arnas.checkpoints import CheckpointStore, Keeper
from arnas.errors import Interrupted, InvalidInput, Unreachable

KEY, OTHER = 32 * "0a", 32 * "0b"

tensors = st.builds(
    lambda shape, dtype: (100 * torch.rand(shape)).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16, torch.uint8]),
)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nests = st.recursive(
    plain | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
    max_leaves=10,
)


def same(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


@pytest.fixture(scope="module", params=["minio", "seaweedfs"])
def server(request):
    """Either store."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["folder", "minio", "seaweedfs"])
def place(request, tmp_path, monkeypatch):
    """Any kind of place."""
    if request.param == "folder":
        return str(tmp_path / "store")
    bucket = f"bucket-{secrets.token_hex(4)}"
    request.getfixturevalue(request.param).lead(monkeypatch, bucket)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture(params=["minio", "seaweedfs"])
def own_server(request):
    """Either store, which the test may kill."""
    return request.getfixturevalue(f"own_{request.param}")


def kept(place):
    """Names of all files or objects there."""
    if objects.is_place(place):
        return list(objects.Bucket(place).list())
    return sorted(str(file.relative_to(place)) for file in Path(place).rglob("*"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(), nests, max_size=4))
def test_any_state_comes_back_as_it_was(place, state):
    store = CheckpointStore(place)
    store.save(KEY, state)
    assert same(store.load(KEY), state)
    assert same(CheckpointStore(place).load(KEY), state)


def test_optimizer_states_come_back(place):
    weight = torch.nn.Parameter(torch.rand(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    CheckpointStore(place).save(KEY, {"optimizer": optimizer.state_dict()})
    other = torch.optim.Adam([torch.nn.Parameter(torch.rand(3))])
    other.load_state_dict(CheckpointStore(place).load(KEY)["optimizer"])
    assert same(other.state_dict(), optimizer.state_dict())


def test_a_state_is_saved_as_it_is_at_that_moment_and_apart_from_what_shares_its_memory(place):
    weight = torch.arange(12.0).reshape(3, 4)
    state = {"whole": weight, "part": weight[1], "turned": weight.T, "spread": weight[:1].expand(3, 4)}
    copies = {name: tensor.clone() for name, tensor in state.items()}
    CheckpointStore(place).save(KEY, state)
    weight.zero_()
    assert same(CheckpointStore(place).load(KEY), copies)


def test_there_is_none_before_one_is_saved(place):
    assert CheckpointStore(place).load(KEY) is None


def test_keys_are_apart(place):
    store = CheckpointStore(place)
    for number, key in enumerate([KEY, OTHER, KEY]):
        store.save(key, {"number": number})
    assert (store.load(KEY), store.load(OTHER)) == ({"number": 2}, {"number": 1})


def test_a_damaged_checkpoint_is_named_and_not_believed(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save("key", {"weight": torch.rand(100)})
    file = tmp_path / "key.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(InvalidInput, match=f"Checkpoint {file} is damaged .*delete it"):
        store.load("key")


def test_a_damaged_object_is_named_and_not_believed(bucket, server):
    CheckpointStore(bucket).save(KEY, {"weight": torch.rand(100)})
    (name,) = kept(bucket)
    shelf = objects.Bucket(bucket)
    content = server.client().get_object(shelf.name, shelf.prefix + name).data
    for damaged in (content[:-50], content[:-1] + bytes([content[-1] ^ 1])):  # a bit of a weight: no format shows that
        server.client().put_object(shelf.name, shelf.prefix + name, io.BytesIO(damaged), len(damaged))
        with pytest.raises(InvalidInput, match=f"{bucket}/{name} is damaged: its SHA-256 is .*; remove it"):
            CheckpointStore(bucket).load(KEY)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    for use in (CheckpointStore.open, lambda place: CheckpointStore(place).save("key", {})):
        with pytest.raises(InvalidInput, match="cannot be written"):
            use(tmp_path / "file" / "store")


def test_a_bucket_that_is_not_there_is_found_before_work_starts(bucket):
    with pytest.raises(InvalidInput, match="There is no bucket nobody-made-this"):
        CheckpointStore.open("s3://nobody-made-this")


def test_other_objects_below_a_key_are_no_states_and_stay(bucket):
    for foreign in (f"{KEY}/notes.txt", f"{KEY}/999999999-no-digest"):
        objects.Bucket(bucket).put(foreign, b"")
    store = CheckpointStore(bucket)
    assert store.load(KEY) is None
    for number in range(2):
        store.save(KEY, {"number": number})
        assert store.load(KEY) == {"number": number}
    assert {f"{KEY}/notes.txt", f"{KEY}/999999999-no-digest"} < set(kept(bucket)) and len(kept(bucket)) == 3


# What is removed


def test_a_key_keeps_its_last_state_only(place):
    store = CheckpointStore.open(place)
    for number in range(3):
        store.save(KEY, {"number": number})
    assert len(kept(place)) == 1


def test_the_same_state_is_stored_once_more_and_can_come_back(place):
    store = CheckpointStore(place)
    for number in (1, 1, 2, 1):
        store.save(KEY, {"number": number})
        assert store.load(KEY) == {"number": number}


def test_states_that_are_old_are_removed_when_a_store_is_opened_and_nothing_else_is(place, monkeypatch):
    CheckpointStore(place).save(KEY, {})
    CheckpointStore(place).save("no-digest", {})
    CheckpointStore.open(place)
    assert len(kept(place)) == 2
    monkeypatch.setattr(checkpoints, "KEPT_DAYS", -1)
    CheckpointStore.open(place)
    assert len(kept(place)) == 1 and kept(place)[0].startswith("no-digest")


def test_what_an_abandoned_trainjob_left_in_a_bucket_is_removed_with_the_old_states(bucket, monkeypatch):
    files = ["arnas-retrain-0123456789ab/images/artifact.json", "arnas-retrain-0123456789ab/genotype.json"]
    others = ["arnas-retrain-mine/images", "of/arnas-retrain-0123456789ab/images"]
    for name in (*files, *others):
        objects.Bucket(bucket).put(name, b"")
    CheckpointStore.open(bucket)
    assert len(objects.Bucket(bucket).list()) == 4
    monkeypatch.setattr(checkpoints, "KEPT_DAYS", -1)
    CheckpointStore.open(bucket)
    assert list(objects.Bucket(bucket).list()) == others


def test_what_a_killed_writer_left_in_a_folder_is_removed_after_a_day(tmp_path):
    for name, age in {"new": 0, "old": 2}.items():
        (tmp_path / f".{KEY}.safetensors.{name}").mkdir()
        (tmp_path / f".{KEY}.safetensors.{name}" / "half").touch()
        written = time.time() - age * 24 * 3600
        os.utime(tmp_path / f".{KEY}.safetensors.{name}", (written, written))
    CheckpointStore.open(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [f".{KEY}.safetensors.new"]


def test_a_folder_is_opened_while_others_write_there(tmp_path):
    ended = threading.Event()

    def write():
        while not ended.is_set():
            CheckpointStore(tmp_path).save(KEY, {})

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(300):
        CheckpointStore.open(tmp_path)
    ended.set()
    thread.join()


# Writers that are killed, and writers that meet

WRITER = """
import sys, torch
from arnas.checkpoints import CheckpointStore
store = CheckpointStore(sys.argv[1])
number = 0
while True:
    number += 1
    store.save(sys.argv[2], {"number": number, "weight": torch.full((int(sys.argv[3]),), float(number))})
    print(number, flush=True)
"""


def writer(place, size=200_000, before=""):
    command = [sys.executable, "-c", before + WRITER, str(place), KEY, str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def whole(state, size):
    return torch.equal(state["weight"], torch.full((size,), float(state["number"])))


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(place):
    for saves in (1, 2, 4):
        with writer(place) as process:
            for _ in range(saves):
                seen = int(process.stdout.readline())
            process.kill()
        state = CheckpointStore(place).load(KEY)
        assert state["number"] >= seen and whole(state, 200_000)


def test_a_writer_killed_amid_an_upload_leaves_what_was_there(bucket):
    CheckpointStore(bucket).save(KEY, {"number": 0, "weight": torch.zeros(100)})
    names = kept(bucket)
    with writer(bucket, 10_000_000, minio_server.DIES_AMID_AN_UPLOAD) as process:  # three parts
        assert process.stdout.read() == ""
    assert process.returncode == -signal.SIGKILL
    assert kept(bucket) == names
    assert CheckpointStore(bucket).load(KEY)["number"] == 0


def test_a_server_killed_amid_uploads_loses_nothing(own_server, monkeypatch, capfd):
    size, place = 10_000_000, "s3://bucket/prefix"
    store = CheckpointStore.open(place)
    send, killers = urllib3.PoolManager.urlopen, []

    def restart():
        own_server.kill()
        own_server.start()

    def killing(self, method, url, **more):
        if "partNumber=2" in url and len(killers) == number:
            own_server.freeze()  # so that it dies while the part is on its way, however fast both are
            killers.append(threading.Timer(0.2, restart))
            killers[-1].start()
        return send(self, method, url, **more)

    monkeypatch.setattr(urllib3.PoolManager, "urlopen", killing)
    for number in range(3):
        store.save(KEY, {"number": number, "weight": torch.full((size,), float(number))})
        killers[number].join()
        state = CheckpointStore(place).load(KEY)
        assert state["number"] == number and whole(state, size)
    assert len(kept(place)) == 1
    assert capfd.readouterr().err.count("answers again") == 3


def test_two_writers_and_a_reader_at_once_see_whole_states_and_agree(place):
    seen = []
    with writer(place) as first, writer(place) as second:
        for process in (first, second):
            process.stdout.readline()
        for _ in range(30):
            state = CheckpointStore(place).load(KEY)
            assert whole(state, 200_000)
            seen.append(state["number"])
        first.kill()
        second.kill()
    assert len(set(seen)) > 1
    assert same(CheckpointStore(place).load(KEY), CheckpointStore(place).load(KEY))
    CheckpointStore(place).save(KEY, {})
    assert len([name for name in kept(place) if not name.startswith(".")]) == 1


def test_an_upload_that_ends_late_neither_replaces_a_later_state_nor_removes_it(bucket, monkeypatch):
    slow, quick = CheckpointStore(bucket), CheckpointStore(bucket)
    slow.save(KEY, {"number": 0})
    put = slow._shelf.bucket.put

    def late(name, content):
        for number in (1, 2, 3):
            quick.save(KEY, {"number": number})
        put(name, content)

    monkeypatch.setattr(slow._shelf.bucket, "put", late)
    slow.save(KEY, {"number": 1})
    assert slow.load(KEY) == quick.load(KEY) == {"number": 3}
    quick.save(KEY, {"number": 4})
    assert quick.load(KEY) == {"number": 4} and len(kept(bucket)) == 1


def test_a_reader_that_finds_a_state_removed_takes_the_later_one(bucket, monkeypatch):
    reader = CheckpointStore(bucket)
    reader.save(KEY, {"number": 1})
    get = reader._shelf.bucket.get

    def late(*arguments):
        if len(kept(bucket)) == 1 and "000000000-" in kept(bucket)[0]:
            CheckpointStore(bucket).save(KEY, {"number": 2})
        return get(*arguments)

    monkeypatch.setattr(reader._shelf.bucket, "get", late)
    assert reader.load(KEY) == {"number": 2}


# The keeper


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_and_leaves_with_its_status_and_one_sentence(tmp_path, number, capfd):
    store, before = CheckpointStore(tmp_path), signal.getsignal(number)
    with pytest.raises(Interrupted) as left, Keeper(store, "key", "search") as keeper:
        keeper.offer(lambda: {"step": 1})
        assert store.load("key") is None  # the interval has not passed
        os.kill(os.getpid(), number)
        keeper.offer(lambda: {"step": 2})
    assert store.load("key") == {"step": 2}
    assert left.value.code == 128 + number
    assert capfd.readouterr().err == (
        "search was interrupted; its state is saved and the same command goes on from there.\n"
    )
    assert signal.getsignal(number) is before


def test_a_signal_after_the_last_step_is_told_too(tmp_path, capfd):
    with pytest.raises(Interrupted), Keeper(CheckpointStore(tmp_path), "key", "search") as keeper:
        keeper.save({})
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err.count("search was interrupted; its state is saved") == 1


def test_asked_twice_it_leaves_at_once_and_does_not_claim_that_the_state_is_saved(tmp_path, capfd):
    with pytest.raises(Interrupted), Keeper(CheckpointStore(tmp_path), "key", "search"):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == "search was interrupted; the same command goes on from its last checkpoint.\n"


def test_the_state_is_saved_when_the_interval_has_passed(tmp_path):
    with Keeper(CheckpointStore(tmp_path), "key", "search", interval=0) as keeper:
        keeper.offer(lambda: {"step": 1})
        assert keeper.restore() == {"step": 1}


@pytest.mark.parametrize(("takes", "pause"), [(1, 15), (4, 40), (240, 300)])  # the last one sat out an outage
def test_checkpoints_that_take_long_come_less_often_but_come(monkeypatch, takes, pause):
    now, saved = [0.0], []
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Store:
        hurried = False

        def save(self, key, state):
            now[0] += takes
            saved.append(state)

    with Keeper(Store(), KEY, "search") as keeper:
        keeper.save("first")
        now[0] += pause - 1
        keeper.offer(lambda: "too early")
        now[0] += 1
        keeper.offer(lambda: "second")
    assert saved == ["first", "second"]


def test_a_process_that_is_asked_to_stop_does_not_wait_for_a_store_that_is_away(own_minio, monkeypatch, capfd):
    monkeypatch.setattr(checkpoints, "LAST_PATIENCE", 1.0)
    store = CheckpointStore.open("s3://bucket/prefix")
    store.save(KEY, {"step": 0})
    own_minio.kill()
    with pytest.raises(Interrupted) as left, Keeper(store, KEY, "search", interval=0) as keeper:
        timer = threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        began = time.monotonic()
        keeper.offer(lambda: {"step": 1})
    assert 2 < time.monotonic() - began < 60
    assert left.value.code == 128 + signal.SIGTERM and "its last steps could not be saved" in left.value.message
    own_minio.start()
    assert CheckpointStore("s3://bucket/prefix").load(KEY) == {"step": 0}
    assert not store.hurried


def test_a_process_that_is_asked_to_stop_asks_a_store_that_hangs_no_more(own_minio, monkeypatch, capfd):
    monkeypatch.setattr(checkpoints, "LAST_PATIENCE", 1.0)
    monkeypatch.setattr(objects, "TIMEOUT", 2.0)
    store = CheckpointStore.open("s3://bucket/prefix")
    capfd.readouterr()
    own_minio.freeze()
    with pytest.raises(Interrupted) as left, Keeper(store, KEY, "search") as keeper:
        os.kill(os.getpid(), signal.SIGTERM)
        keeper.offer(lambda: {"step": 1})
    said = capfd.readouterr().err
    assert said.count(" is away (no answer in time)") == 1  # patience ended with the one request under way
    assert left.value.code == 128 + signal.SIGTERM and "its last steps could not be saved" in said


def test_a_store_that_stays_away_ends_the_stage(own_minio, monkeypatch):
    monkeypatch.setenv("ARNAS_S3_PATIENCE", "1")
    own_minio.kill()
    with pytest.raises(Unreachable), Keeper(CheckpointStore("s3://bucket"), KEY, "search") as keeper:
        keeper.save({})
