import hashlib
import http.server
import threading
import zipfile

import pytest

from arnas import config
from arnas.data import download
from arnas.errors import InvalidInput


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A web server with a small archive for each data set, at whose addresses the data sets are said to lie."""
    root = tmp_path / "site"
    root.mkdir()
    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w") as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", "n01")
    for name in ("train_32x32.mat", "test_32x32.mat"):
        (root / name).write_bytes(name.encode())
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(root))

        def log_message(self, form, *values):
            asked.append(values[0])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for dataset in ("svhn", "tiny-imagenet"):
            moved = {}
            for name, (url, _) in download.ADDRESSES[dataset].items():
                file = root / url.rpartition("/")[2]
                md5 = hashlib.md5(file.read_bytes()).hexdigest()
                moved[name] = (f"http://127.0.0.1:{server.server_port}/{file.name}", md5)
            monkeypatch.setitem(download.ADDRESSES, dataset, moved)
        yield root, asked
        server.shutdown()


def test_an_archive_is_fetched_once_and_unpacked(site, tmp_path):
    _, asked = site
    place = tmp_path / "new" / "data"
    download.fetch("tiny-imagenet", place)
    assert (place / "tiny-imagenet-200" / "wnids.txt").read_text() == "n01"
    assert [entry.name for entry in place.iterdir()] == ["tiny-imagenet-200"]  # no archive, no scratch
    count = len(asked)
    download.fetch("tiny-imagenet", place)
    download.fetch("tiny-imagenet", place / "tiny-imagenet-200")
    assert len(asked) == count


def test_of_several_files_those_that_are_missing_are_fetched(site, tmp_path):
    _, asked = site
    (tmp_path / "train_32x32.mat").write_bytes(b"mine")
    download.fetch("svhn", tmp_path)
    assert (tmp_path / "train_32x32.mat").read_bytes() == b"mine"
    assert (tmp_path / "test_32x32.mat").read_bytes() == b"test_32x32.mat"
    assert not any("train" in request for request in asked)


def test_what_is_not_the_published_archive_is_not_unpacked(site, tmp_path):
    root, _ = site
    (root / "tiny-imagenet-200.zip").write_bytes(b"another one")
    with pytest.raises(InvalidInput, match=r"tiny-imagenet cannot be downloaded from .*\(.*corrupted.*\)"):
        download.fetch("tiny-imagenet", tmp_path / "data")
    assert not any((tmp_path / "data").iterdir())


def test_without_a_network_one_sentence_says_what_to_do(monkeypatch, tmp_path):
    url = "http://127.0.0.1:9/cifar-10-python.tar.gz"  # nobody answers there
    monkeypatch.setitem(download.ADDRESSES, "cifar10", {"cifar-10-batches-py": (url, "0" * 32)})
    sentence = rf"cifar10 cannot be downloaded from {url} \(.*refused\); fetch it where there is a network, and say by"
    with pytest.raises(InvalidInput, match=sentence):
        download.fetch("cifar10", tmp_path)


@pytest.mark.parametrize("dataset", ["digits", "glyphs", "folder"])
def test_a_data_set_that_nobody_publishes_cannot_be_downloaded(dataset):
    with pytest.raises(InvalidInput, match=f"data set {dataset} cannot be downloaded"):
        config.validate(config.Prepare, {"dataset": dataset, "download": True}, "options")


def test_nothing_is_downloaded_into_a_bucket():
    with pytest.raises(InvalidInput, match=r"nothing is downloaded into s3://bucket/data; .* then use arnas upload"):
        config.validate(config.Prepare, {"download": True, "path": "s3://bucket/data"}, "options")
