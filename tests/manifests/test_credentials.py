"""The store's keys are made in a real cluster by the account of the job, once, and are seen nowhere."""

import base64

import pytest
from kubernetes import client, config

from arnas.errors import InvalidInput
from cluster import credentials


@pytest.fixture
def namespaces(installed):
    """Those of the job, without the secret."""
    for namespace in ("arnas", "kubeflow"):
        installed.kubectl("delete", "secret", "arnas-s3", f"--namespace={namespace}", "--ignore-not-found")
    return ["arnas", "kubeflow"]


@pytest.fixture
def api(installed):
    with config.new_client_from_config(str(installed.kubeconfig_of("arnas-secret", "arnas"))) as api:
        yield api


def keys(api, namespace):
    data = client.CoreV1Api(api).read_namespaced_secret("arnas-s3", namespace).data
    return {name: base64.b64decode(value).decode() for name, value in data.items()}


def test_both_namespaces_get_the_same_random_keys(api, namespaces):
    assert credentials.ensure(api, namespaces) == namespaces
    first = keys(api, "arnas")
    assert first == keys(api, "kubeflow")
    assert {name: len(value) for name, value in first.items()} == {"accesskey": 20, "secretkey": 40}


def test_a_second_run_changes_nothing(api, namespaces):
    credentials.ensure(api, namespaces)
    before = keys(api, "arnas")
    assert credentials.ensure(api, namespaces) == []
    assert keys(api, "arnas") == before


def test_new_keys_are_different_ones(installed, api, namespaces):
    credentials.ensure(api, namespaces)
    before = keys(api, "arnas")
    for namespace in namespaces:
        installed.kubectl("delete", "secret", "arnas-s3", f"--namespace={namespace}")
    credentials.ensure(api, namespaces)
    assert not set(keys(api, "arnas").values()) & set(before.values())


@pytest.mark.parametrize("there, other", [("arnas", "kubeflow"), ("kubeflow", "arnas")])
def test_keys_that_are_there_are_kept_and_copied(installed, api, namespaces, there, other):
    own = ("--from-literal=accesskey=someone", "--from-literal=secretkey=something")
    installed.kubectl("create", "secret", "generic", "arnas-s3", f"--namespace={there}", *own)
    assert credentials.ensure(api, namespaces) == [other]
    assert keys(api, there) == keys(api, other) == {"accesskey": "someone", "secretkey": "something"}


def test_different_keys_are_told_apart_and_neither_is_touched(installed, api, namespaces, monkeypatch, capfd):
    for namespace in namespaces:
        own = (f"--from-literal=accesskey={namespace}-planted", "--from-literal=secretkey=secret-planted")
        installed.kubectl("create", "secret", "generic", "arnas-s3", f"--namespace={namespace}", *own)
    with pytest.raises(InvalidInput, match="Secret arnas-s3 differs between the namespaces arnas, kubeflow; delete"):
        credentials.ensure(api, namespaces)
    assert keys(api, "arnas")["accesskey"] == "arnas-planted"

    _in_cluster(monkeypatch, api)
    assert credentials.main(namespaces) == 2
    assert "planted" not in "".join(capfd.readouterr())


def test_the_job_says_what_it_did_and_no_key(api, namespaces, monkeypatch, capfd):
    _in_cluster(monkeypatch, api)
    assert credentials.main(namespaces) == 0
    said = "".join(capfd.readouterr())
    assert said == "Secret arnas-s3: made in arnas, kubeflow; it is in arnas, kubeflow.\n"
    assert credentials.main(namespaces) == 0
    assert capfd.readouterr().out == "Secret arnas-s3: made in no namespace; it is in arnas, kubeflow.\n"
    assert not [value for value in keys(api, "arnas").values() if value in said]


def _in_cluster(monkeypatch, api):
    """As a pod of the job would find it."""
    monkeypatch.setattr(config, "load_incluster_config", lambda: None)
    monkeypatch.setattr(client, "ApiClient", lambda: api)
