"""Objects in a real store: what is written comes back, outages are waited for, mistakes are one sentence."""

import hashlib
import http.server
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import minio_server
import pytest
import trustme
import urllib3
from minio.credentials import StaticProvider
from minio.minioadmin import MinioAdmin
from PIL import Image

from arnas import config, objects
from arnas.errors import InvalidInput, Unreachable
from arnas.stages import prepare

ROOT = Path(__file__).parents[1]
MIB = 2**20


def names(place):
    return list(objects.Bucket(place).list())


def after(seconds, do):
    timer = threading.Timer(seconds, do)
    timer.start()
    return timer


def refusal(call, *arguments):
    """The sentence by which a call is refused, which comes at once and is all that is said."""
    with pytest.raises(InvalidInput) as refused:
        call(*arguments)
    sentence = str(refused.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


@pytest.fixture(scope="module", params=["minio", "seaweedfs"])
def server(request):
    """Either store."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 5 * MIB + 1, 12 * MIB])
@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_what_is_written_comes_back_in_one_part_or_several(bucket, tmp_path, monkeypatch, size, kind):
    monkeypatch.setattr(objects, "PART", 5 * MIB)
    content = os.urandom(size)
    (tmp_path / "in").write_bytes(content)
    store = objects.Bucket(bucket)
    store.put("a/b", content if kind == "bytes" else tmp_path / "in")
    assert store.get("a/b", tmp_path / "out", hashlib.sha256(content).hexdigest())
    assert (tmp_path / "out").read_bytes() == content
    assert [(name, entry.size) for name, entry in store.list().items()] == [("a/b", size)]


def test_an_object_is_listed_under_its_prefix_until_it_is_removed(bucket, tmp_path):
    store, other = objects.Bucket(bucket), objects.Bucket(f"{bucket}-2/")
    store.put("x/1", b"1")
    other.put("x/2", b"2")
    assert (list(store.list()), list(store.list("y")), list(other.list())) == (["x/1"], [], ["x/2"])
    store.remove("x/1")
    store.remove("x/1")
    assert not store.list() and not store.get("x/1", tmp_path / "out") and not (tmp_path / "out").exists()


def test_the_whole_bucket_is_a_place(bucket):
    whole = bucket.removesuffix("/some/prefix")
    objects.Bucket(whole).put("name", b"content")
    assert names(whole) == ["name"]


def test_a_probe_leaves_nothing(bucket):
    objects.Bucket(bucket).probe()
    assert names(bucket) == []


@pytest.mark.parametrize("lacking", ["s3:ListBucket", "s3:GetObject"])
def test_a_probe_leaves_nothing_where_a_right_is_missing(own_minio, monkeypatch, tmp_path, lacking):
    rights = {f"s3:{name}" for name in ("GetBucketLocation", "PutObject", "ListBucket", "GetObject", "DeleteObject")}
    statement = {"Effect": "Allow", "Action": sorted(rights - {lacking}), "Resource": ["arn:aws:s3:::*"]}
    (tmp_path / "policy").write_text(json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    user, secret = f"user-{secrets.token_hex(4)}", secrets.token_hex(8)
    owner = StaticProvider(own_minio.access_key, own_minio.secret_key)
    admin = MinioAdmin(endpoint=f"127.0.0.1:{own_minio.port}", credentials=owner, secure=False)
    admin.user_add(user, secret)
    admin.policy_add(user, tmp_path / "policy")
    admin.policy_set(user, user=user)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", user)
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        assert "denies access" in refusal(objects.Bucket("s3://bucket").probe)
    assert names("s3://bucket") == []


def test_a_place_whose_name_the_store_changes_is_refused(bucket):
    sentence = refusal(objects.Bucket(bucket.replace("/some", "//some")).probe)
    assert "//some/prefix does not give back what is written there" in sentence


def test_a_damaged_object_is_named_and_not_believed(bucket, server, tmp_path):
    store = objects.Bucket(bucket)
    store.put("name", b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    (tmp_path / "changed").write_bytes(b"damaged")
    server.client().fput_object(store.name, store.prefix + "name", tmp_path / "changed", metadata={"sha256": digest})
    for expected in (None, digest):
        sentence = refusal(store.get, "name", tmp_path / "out", expected)
        assert sentence.startswith(f"{bucket}/name is damaged: its SHA-256 is ") and digest in sentence
        assert not (tmp_path / "out").exists()


# Outages


def test_a_server_that_is_killed_and_started_again_is_waited_for(own_minio, tmp_path, capfd):
    store = objects.Bucket("s3://bucket/prefix")
    store.put("before", b"before")
    own_minio.kill()
    timer = after(2, own_minio.start)
    store.put("after", b"after")
    timer.join()
    assert store.get("before", tmp_path / "before") and store.get("after", tmp_path / "after")
    assert (tmp_path / "before").read_bytes() + (tmp_path / "after").read_bytes() == b"beforeafter"
    said = capfd.readouterr().err.splitlines()
    begun = rf"\[store\] {own_minio.url} is away \(Connection refused\), for \d+ s so far; try 2 follows in "
    assert re.match(begun, said[0])
    assert f"[store] {own_minio.url} answers again, after " in said[-1]


def test_a_server_that_does_not_answer_is_waited_for(own_minio, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(objects, "TIMEOUT", 0.5)
    store = objects.Bucket("s3://bucket")
    own_minio.freeze()
    timer = after(2, own_minio.thaw)
    store.put("name", b"content")
    timer.join()
    assert store.get("name", tmp_path / "out")
    assert "answers again" in capfd.readouterr().err


def test_an_outage_longer_than_the_longest_is_one_sentence(own_minio, monkeypatch, capfd):
    monkeypatch.setenv("ARNAS_S3_PATIENCE", "2")
    own_minio.kill()
    began = time.monotonic()
    with pytest.raises(
        Unreachable, match=rf"{own_minio.url} has been away for \d+ s \(Connection refused\); what was saved"
    ):
        objects.Bucket("s3://bucket").put("name", b"content")
    assert time.monotonic() - began >= 2
    assert own_minio.secret_key not in capfd.readouterr().err


ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>m</Message><Resource>r</Resource></Error>"


@pytest.fixture
def stub(monkeypatch):
    """A function of the answers (status, body, bytes of it that are sent) that a store gives; it gives the requests."""
    asked = []

    class Store(http.server.BaseHTTPRequestHandler):
        def answer(self):
            status, body, sent = Store.answers[len(asked)]
            asked.append(self.command)
            self.send_response(status)
            self.send_header("Content-Type", "application/xml" if body.startswith(b"<?xml") else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:sent])

        do_GET = do_DELETE = answer

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Store) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)

        def answers(*given):
            Store.answers = given
            return asked

        yield answers
        server.shutdown()
        thread.join()


def test_half_an_answer_is_asked_for_again(stub, tmp_path, capfd):
    content = os.urandom(3 * MIB)
    asked = stub((200, content, 100), (200, content, 2 * MIB), (200, content, None))
    assert objects.Bucket("s3://bucket").get("name", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content
    assert len(asked) == 3 and capfd.readouterr().err.count(" is away (connection broken") == 2


PASSING = [(503, "SlowDown"), (500, "InternalError"), (507, "XMinioStorageFull"), (429, "TooManyRequests")]
PASSING += [(400, "RequestTimeout"), (400, "BadDigest"), (502, None)]  # None: the page of a proxy
LASTING = [(400, "InvalidArgument"), (403, "RequestTimeTooSkewed"), (413, None), (404, None)]


@pytest.mark.parametrize(("status", "code"), PASSING)
def test_what_will_pass_is_waited_for(stub, status, code):
    body = ERROR.format(code).encode() if code else b"<html>"
    asked = stub((status, body, None), (204, b"", None))
    objects.Bucket("s3://bucket").remove("name")
    assert len(asked) == 2


@pytest.mark.parametrize(("status", "code"), LASTING)
def test_what_will_not_pass_is_said_at_once(stub, status, code):
    asked = stub((status, ERROR.format(code).encode() if code else b"<html>", None))
    assert f"({code or f'HTTP {status}'})" in refusal(objects.Bucket("s3://bucket").remove, "name")
    assert len(asked) == 1


REMEDIES = {
    "RequestTimeTooSkewed": "The clocks of this machine and of http://",
    "ExpiredToken": "renew AWS_SESSION_TOKEN and the keys",
    "XMinioAdminBucketQuotaExceeded": "The quota for s3://bucket is used up",
}


@pytest.mark.parametrize("code", REMEDIES)
def test_clock_token_and_quota_have_remedies_of_their_own(stub, code):
    stub((400, ERROR.format(code).encode(), None))
    assert REMEDIES[code] in refusal(objects.Bucket("s3://bucket").remove, "name")


# Mistakes


@pytest.mark.parametrize("region", [None, "us-east-1"])  # without one the store is asked, and finds that out
def test_a_bucket_that_is_not_there_is_named_and_not_made(bucket, server, monkeypatch, region):
    if region:
        monkeypatch.setenv("AWS_REGION", region)
    sentence = refusal(objects.Bucket("s3://nobody-made-this/x").probe)
    assert not server.client().bucket_exists("nobody-made-this")
    assert sentence == f"There is no bucket nobody-made-this at {server.url}; make it, or name another."


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_said_at_once_and_no_secret_is(bucket, server, monkeypatch, capfd, wrong):
    planted = f"planted-{secrets.token_hex(8)}"
    monkeypatch.setenv(wrong, planted)
    with pytest.raises(InvalidInput, match="does not accept the credentials; mend AWS_ACCESS_KEY_ID and") as refused:
        objects.Bucket(bucket).probe()
    said = "".join([*traceback.format_exception(refused.value), *capfd.readouterr()])
    assert planted not in said and server.secret_key not in said


def test_rights_that_are_missing_are_named(bucket, server, monkeypatch):
    access, secret = server.reader()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    sentence = refusal(objects.Bucket(bucket).probe)
    assert f"{server.url} denies access to {bucket}; these credentials need the right to list, read, write" in sentence


@pytest.mark.parametrize(
    ("change", "place", "sentence"),
    [
        ({"AWS_ENDPOINT_URL": None}, "s3://bucket", "needs AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:9000"}, "s3://bucket", "needs AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://me:planted@host:9000"}, "s3://bucket", "without user, password or path"),
        ({"AWS_ENDPOINT_URL": "http://host:9000/path"}, "s3://bucket", "without user, password or path"),
        ({"AWS_REGION": "no region"}, "s3://bucket", "AWS_ENDPOINT_URL or AWS_REGION cannot be used: invalid region"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "s3://bucket", "needs credentials; set AWS_ACCESS_KEY_ID and"),
        ({"ARNAS_S3_SECRET": "/no/such"}, "s3://bucket", "ARNAS_S3_SECRET is /no/such, which must be a folder"),
        ({"AWS_ENDPOINT_URL": "https://h", "AWS_CA_BUNDLE": "/no/ca"}, "s3://bucket", "/no/ca holds no certificate"),
        ({"AWS_ENDPOINT_URL": "https://h", "AWS_CA_BUNDLE": __file__}, "s3://bucket", "holds no certificate"),
        ({"ARNAS_S3_PATIENCE": "long"}, "s3://bucket", "ARNAS_S3_PATIENCE is 'long'; give a whole number of seconds"),
        ({}, "s3://", "s3:// names no bucket"),
        ({}, "s3://UPPER_case/x", "s3://UPPER_case/x names no bucket"),
        ({}, "s3://bucket/a/../b", "s3://bucket/a/../b has a part . or .., which no object may have"),
    ],
)
def test_an_environment_or_place_that_cannot_be_used_is_one_sentence(monkeypatch, change, place, sentence):
    sound = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "planted",
        "AWS_SECRET_ACCESS_KEY": "planted",
    }
    for name, value in (sound | change).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    said = refusal(lambda: objects.Bucket(place).probe())
    assert sentence in said and "planted" not in said


def test_a_misspelt_place_is_not_taken_for_a_folder():
    assert objects.is_place("s3://bucket/x") and not objects.is_place("folder/s3:/x")
    assert "write s3://BUCKET/PREFIX" in refusal(objects.is_place, Path("s3://bucket/x"))


# Credentials from a mounted secret; TLS


def mount(folder, server, **more):
    folder.mkdir()
    for name, value in {"accesskey": f"{server.access_key}\n", "secretkey": f"{server.secret_key}\n", **more}.items():
        (folder / name).write_text(value)


def test_credentials_come_from_a_mounted_secret(bucket, server, monkeypatch, tmp_path):
    mount(tmp_path / "secret", server)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of something else")
    monkeypatch.setenv("ARNAS_S3_SECRET", str(tmp_path / "secret"))
    objects.Bucket(bucket).probe()
    (tmp_path / "secret" / "secretkey").write_text("wrong")
    assert f"mend accesskey and secretkey in {tmp_path / 'secret'}." in refusal(objects.Bucket(bucket).probe)


def test_a_mounted_secret_that_was_replaced_meanwhile_is_read_again(bucket, server, monkeypatch, tmp_path):
    mount(tmp_path / "secret", server)
    (tmp_path / "secret" / "secretkey").write_text("of last month")
    monkeypatch.setenv("ARNAS_S3_SECRET", str(tmp_path / "secret"))
    store = objects.Bucket(bucket)
    (tmp_path / "secret" / "secretkey").write_text(server.secret_key)
    store.probe()


def test_tls_trusts_the_private_authority_that_is_named_and_no_other(needs_minio, monkeypatch, tmp_path):
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.crt")
    with minio_server.Server(tmp_path / "minio", authority.issue_cert("127.0.0.1")) as server:
        server.client(urllib3.PoolManager(ca_certs=str(tmp_path / "ca.crt"))).make_bucket("bucket")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        probe = lambda: objects.Bucket("s3://bucket/prefix").probe()  # noqa: E731

        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.crt"))
        probe()
        for other in (str(tmp_path / "stranger.crt"), ""):  # "": the public authorities
            monkeypatch.setenv("AWS_CA_BUNDLE", other)
            assert f"{server.url} cannot be trusted (unable to get local issuer certificate)" in refusal(probe)

        mount(tmp_path / "secret", server, **{"ca.crt": (tmp_path / "ca.crt").read_text()})
        monkeypatch.setenv("ARNAS_S3_SECRET", str(tmp_path / "secret"))
        probe()
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.replace("https", "http"))
        assert "refuses s3://bucket/prefix (HTTP 400)" in refusal(probe)


def test_tls_where_the_server_has_none_is_said_at_once(bucket, server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.replace("http", "https"))
    assert "cannot be trusted" in refusal(objects.Bucket(bucket).probe)


# Folders: data sets


def put_images(folder, kinds=("ant", "bee")):
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (8, 8), (index * 20, 40 * (kind == kinds[1]), 0)).save(folder / kind / f"{index}.png")


def test_a_data_set_is_read_from_a_bucket_as_from_a_folder_and_no_copy_stays(bucket, tmp_path, monkeypatch, capfd):
    data, there = tmp_path / "my data", f"{bucket}/my data/größer als 日本 +%20&?#"
    put_images(data, ("ant & 100%", "Ænni 蜂"))
    objects.upload(data, there)
    download, folders = objects.download, []
    monkeypatch.setattr(objects, "download", lambda place, folder: folders.append(folder) or download(place, folder))
    settings = config.Prepare(dataset="folder", path=str(data), holdout_fraction=0.2)
    first = prepare.run(tmp_path / "first", settings)
    second = prepare.run(tmp_path / "out" / "second", settings.model_copy(update={"path": there}))
    assert first == second
    assert [folder.parent for folder in folders] == [tmp_path / "out"] and not folders[0].exists()
    said = capfd.readouterr().err
    assert f"[store] writing {there}: 0.0 of 0.0 MB." in said and f"[store] reading {there}: 0.0" in said


def test_objects_are_fetched_several_at_a_time_and_the_progress_counts_them_all(bucket, tmp_path, monkeypatch, capfd):
    for index in range(4):
        objects.Bucket(bucket).put(f"part/{index}", bytes(10**6 * index))
    together, get = threading.Barrier(4, timeout=60), objects.Bucket.get
    monkeypatch.setattr(objects.Bucket, "get", lambda *arguments: together.wait() >= 0 and get(*arguments))
    objects.download(bucket, tmp_path / "copy")
    assert [(tmp_path / "copy" / "part" / str(index)).stat().st_size for index in range(4)] == [
        0,
        10**6,
        2 * 10**6,
        3 * 10**6,
    ]
    assert capfd.readouterr().err.endswith(f"[store] reading {bucket}: 6.0 of 6.0 MB.\n")


def test_where_one_object_is_refused_the_others_wait_for_no_outage_and_none_is_begun(bucket, tmp_path, monkeypatch):
    begun = []

    def get(self, name, file, digest=None):
        begun.append(name)
        if name == "00":
            raise InvalidInput("One is damaged.")
        while self.patience():
            time.sleep(0.01)
        raise Unreachable("The store has been away.")

    monkeypatch.setattr(
        objects.Bucket, "list", lambda self: {f"{index:02}": objects.Entry(1, None) for index in range(99)}
    )
    monkeypatch.setattr(objects.Bucket, "get", get)
    assert refusal(objects.download, bucket, tmp_path / "copy") == "One is damaged."
    assert len(begun) <= objects.READERS + 1


def test_what_is_wrong_with_a_data_set_names_its_place_in_the_bucket(bucket, tmp_path):
    put_images(tmp_path / "data")
    (tmp_path / "data" / "ant" / "0.png").write_text("no image")
    objects.upload(tmp_path / "data", bucket)
    settings = config.Prepare(dataset="folder", path=bucket)
    assert f"{bucket}/ant/0.png" in refusal(prepare.run, tmp_path / "set", settings)
    assert "holds nothing" in refusal(
        prepare.run, tmp_path / "set", settings.model_copy(update={"path": f"{bucket}/none"})
    )


def test_an_upload_goes_to_an_empty_place_only(bucket, tmp_path):
    (tmp_path / "data").mkdir()
    assert "holds no file" in refusal(objects.upload, tmp_path / "data", bucket)
    (tmp_path / "data" / "file").write_text("content")
    objects.upload(tmp_path / "data", bucket)
    assert "holds objects already" in refusal(objects.upload, tmp_path / "data", bucket)


def test_an_object_cannot_be_written_outside_of_the_folder(bucket, tmp_path, monkeypatch):
    entry = objects.Entry(1, None)
    monkeypatch.setattr(objects.Bucket, "list", lambda self: {"../outside": entry})
    assert "'../outside', which is no name for a file" in refusal(objects.download, bucket, tmp_path / "folder")
    assert not (tmp_path / "outside").exists()


def test_an_upload_that_is_killed_is_not_read_and_is_done_by_repeating_it(bucket, tmp_path):
    (tmp_path / "data").mkdir()
    for name, size in {"a": MIB, "b": 20 * MIB, "c": MIB}.items():
        (tmp_path / "data" / name).write_bytes(os.urandom(size))
    code = minio_server.DIES_AMID_AN_UPLOAD + "from arnas import cli; cli.main()"
    command = [sys.executable, "-c", code, "upload", str(tmp_path / "data"), bucket]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    assert names(bucket) == [".unfinished", "a"]
    assert f"The upload to {bucket} is not finished" in refusal(objects.download, bucket, tmp_path / "copy")
    objects.upload(tmp_path / "data", bucket)
    objects.download(bucket, tmp_path / "copy")
    for name in ("a", "b", "c"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "data" / name).read_bytes()


def test_the_program_leaves_with_a_status_and_a_sentence_that_holds_no_secret(bucket, server, tmp_path):
    (tmp_path / "file").write_text("content")
    planted = f"planted-{secrets.token_hex(8)}"

    def upload(**changes):
        command = [sys.executable, "-m", "arnas.cli", "upload", str(tmp_path), bucket]
        result = subprocess.run(command, cwd=ROOT, env=os.environ | changes, capture_output=True, text=True)
        assert planted not in result.stdout + result.stderr and server.secret_key not in result.stdout + result.stderr
        return result.returncode, result.stderr.splitlines()

    status, said = upload(AWS_SECRET_ACCESS_KEY=planted)
    assert status == 2 and len(said) == 1 and "does not accept the credentials" in said[0]
    status, said = upload(AWS_ENDPOINT_URL="http://127.0.0.1:1", AWS_SECRET_ACCESS_KEY=planted, ARNAS_S3_PATIENCE="1")
    assert status == 4 and "http://127.0.0.1:1 has been away for " in said[-1]
    assert upload()[0] == 0
