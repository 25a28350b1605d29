"""A real MinIO, started as the manifests say, is ready by their probes; the job makes its bucket, once."""

import os
import subprocess
import threading
import time
import urllib.request

import minio_server
import pytest
from manifests.rendered import label, objects

from cluster import bucket


@pytest.fixture(autouse=True)
def needs_minio():
    if not minio_server.find():
        pytest.skip("MinIO's server is not here: make minio finds or builds it (Go does)")


@pytest.fixture
def minio(tmp_path, monkeypatch):
    with minio_server.Server(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def container(name):
    thing = next(thing for thing in objects("overlays/laptop") if label(thing) == name)
    return thing["spec"]["template"]["spec"]["containers"][0]


def test_minio_starts_with_these_arguments_and_answers_the_probes(minio, tmp_path):
    minio.kill()
    told = container("StatefulSet/minio")
    mounted = {"/data": f"{tmp_path}/disk", "--certs-dir=/tmp/certs": f"--certs-dir={tmp_path}/certs"}
    assert mounted.keys() < set(told["args"])
    arguments = [mounted.get(argument, argument) for argument in told["args"]]
    environment = {each["name"]: each.get("value", "0123456789") for each in told["env"]} | {"HOME": "/nowhere"}
    command = [minio_server.find(), *arguments, "--address", f"127.0.0.1:{minio.port}"]
    with (
        open(tmp_path / "said", "w") as said,
        subprocess.Popen(command, env=environment, stdout=said, stderr=said, cwd="/") as server,
    ):
        try:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert told[probe]["httpGet"]["port"] == "s3"
                answered(minio.url + told[probe]["httpGet"]["path"])
        finally:
            server.kill()
    assert "WebUI" not in (tmp_path / "said").read_text()
    assert os.listdir(f"{tmp_path}/disk")


def answered(url):
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, url
            time.sleep(0.1)


def test_the_job_waits_until_the_store_is_up_and_makes_the_bucket(minio, capfd):
    minio.kill()
    later = threading.Timer(2, minio.start)
    later.start()
    assert bucket.main(*container("Job/arnas-bucket")["args"]) == 0
    later.join()
    assert capfd.readouterr().out == "Bucket arnas is made.\n"
    assert minio.client().bucket_exists("arnas")


def test_a_bucket_that_is_there_keeps_what_it_holds(minio, capfd, tmp_path):
    minio.client().make_bucket("arnas")
    (tmp_path / "file").write_text("kept")
    minio.client().fput_object("arnas", "kept", str(tmp_path / "file"))
    assert bucket.main("s3://arnas") == 0
    assert capfd.readouterr().out == "Bucket arnas was there.\n"
    assert [each.object_name for each in minio.client().list_objects("arnas")] == ["kept"]


def test_wrong_keys_are_one_sentence_and_not_shown(minio, monkeypatch, capfd):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    assert bucket.main("s3://arnas") == 2
    said = capfd.readouterr()
    assert "does not accept the credentials" in said.err and "planted-secret" not in said.err + said.out
