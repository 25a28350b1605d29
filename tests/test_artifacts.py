import json
import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arnas import artifacts
from arnas.errors import InvalidInput

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def artifact(tmp_path):
    with artifacts.publish(tmp_path / "thing") as folder:
        folder.mkdir()
        (folder / "data.bin").write_bytes(b"0123456789")
        artifacts.write(folder, "model", {"name": "net"}, {"seconds": 1.0})
    return tmp_path / "thing"


@given(values)
def test_a_digest_survives_json_and_the_order_of_keys(value):
    assert artifacts.digest(json.loads(json.dumps(value))) == artifacts.digest(value)


def test_digests_tell_settings_apart():
    assert artifacts.digest({"a": 1}) != artifacts.digest({"a": 2}) != artifacts.digest({"a": "2"})


def test_what_was_written_is_read(artifact):
    body = artifacts.read(artifact, "model")
    assert body["content"] == {"name": "net"} and list(body["files"]) == ["data.bin"]


def test_the_digest_does_not_depend_on_time_or_place(artifact, tmp_path):
    with artifacts.publish(tmp_path / "elsewhere" / "other") as folder:
        folder.mkdir()
        (folder / "data.bin").write_bytes(b"0123456789")
        digest = artifacts.write(folder, "model", {"name": "net"}, {"seconds": 2.0})
    assert digest == artifacts.read(artifact, "model")["digest"]


def change(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: change(folder / "data.bin", b"5", b"6"), "data.bin is missing or damaged"),
        (lambda folder: (folder / "data.bin").unlink(), "data.bin is missing or damaged"),
        (lambda folder: change(folder / "artifact.json", b'"net"', b'"web"'), "was changed after it was written"),
        (lambda folder: change(folder / "artifact.json", b"arnas/1", b"arnas/0"), "not of schema"),
        (lambda folder: (folder / "artifact.json").write_text("{"), "is no artifact"),
        (lambda folder: change(folder / "artifact.json", b'"files"', b'"felis"'), "was changed after it was written"),
        (lambda folder: (folder / "artifact.json").unlink(), "is no artifact"),
    ],
)
def test_damage_is_found_and_named(artifact, damage, sentence):
    damage(artifact)
    with pytest.raises(InvalidInput, match=sentence):
        artifacts.read(artifact, "model")


def test_another_kind_is_refused(artifact):
    with pytest.raises(InvalidInput, match="is a model, but an image_set is needed"):
        artifacts.read(artifact, "image_set")


def test_nothing_is_half_written_when_the_writer_fails(tmp_path):
    artifacts.write_text(tmp_path / "file", "old")
    with pytest.raises(RuntimeError), artifacts.publish(tmp_path / "file") as scratch:
        scratch.write_text("new")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_publishing_replaces_a_folder_as_a_whole(tmp_path):
    for name in ("first", "second"):
        with artifacts.publish(tmp_path / "out") as folder:
            folder.mkdir()
            (folder / name).touch()
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["second"]


def test_a_block_that_leaves_nothing_destroys_nothing(artifact):
    with pytest.raises(InvalidInput, match="cannot be written"), artifacts.publish(artifact):
        pass
    assert artifacts.read(artifact, "model") and os.listdir(artifact.parent) == ["thing"]


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path):
    old, young, other = (tmp_path / name for name in (".file.a1b2c3d4", ".file.e5f6g7h8", ".filet.a1b2c3d4"))
    for folder in (old, young, other):
        folder.mkdir()
    for folder in (old, other):
        os.utime(folder, (0, 0))
    artifacts.write_text(tmp_path / "file", "new")
    assert sorted(os.listdir(tmp_path)) == [young.name, other.name, "file"]


def test_leftovers_that_another_writer_takes_away_meanwhile_do_no_harm(tmp_path, monkeypatch):
    gone = tmp_path / ".file.a1b2c3d4"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [gone])
    artifacts.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(tmp_path, monkeypatch):
    artifacts.write_text(tmp_path / "file", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InvalidInput, match=r"file cannot be written: File too large"):
            artifacts.write_text(tmp_path / "file", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "file").read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_an_output_below_a_file_is_refused_before_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=r"cannot be written: (Not a directory|File exists)"):
        artifacts.require_writable(tmp_path / "file" / "out")
