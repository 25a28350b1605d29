"""The accounts of the manifests may do what they need, and nothing beside it, by the word of a real API server."""

import pytest
from kubernetes import client, config

RUNNER = ("kubeflow", "arnas-runner")
KEYS = ("arnas", "arnas-secret")

MAY = {
    RUNNER: [
        ("create", "workflowtaskresults.argoproj.io", "kubeflow"),
        ("patch", "workflowtaskresults.argoproj.io", "kubeflow"),
        ("patch", "workflowtasksets.argoproj.io/status", "kubeflow"),
        ("get", "pods", "kubeflow"),
        ("get", "configmaps/kfp-launcher", "kubeflow"),
        ("get", "secrets/arnas-s3", "kubeflow"),
        ("get", "secrets/mlpipeline-minio-artifact", "kubeflow"),
    ],
    KEYS: [
        ("create", "secrets", "arnas"),
        ("create", "secrets", "kubeflow"),
        ("get", "secrets/arnas-s3", "arnas"),
        ("get", "secrets/arnas-s3", "kubeflow"),
    ],
}
MAY_NOT = {
    RUNNER: [
        ("get", "secrets/mysql-secret", "kubeflow"),
        ("list", "secrets", "kubeflow"),
        ("get", "secrets/arnas-s3", "arnas"),
        ("create", "pods", "kubeflow"),
        ("create", "pods", "kube-system"),
        ("create", "pods/exec", "kubeflow"),
        ("delete", "pods", "kubeflow"),
        ("create", "jobs.batch", "kubeflow"),
        ("create", "trainjobs.trainer.kubeflow.org", "kubeflow"),
        ("update", "configmaps/kfp-launcher", "kubeflow"),
        ("create", "rolebindings.rbac.authorization.k8s.io", "kubeflow"),
        ("list", "nodes", "kubeflow"),
        ("*", "*.*", "kubeflow"),
    ],
    KEYS: [
        ("get", "secrets/mlpipeline-minio-artifact", "kubeflow"),
        ("list", "secrets", "arnas"),
        ("update", "secrets/arnas-s3", "arnas"),
        ("delete", "secrets/arnas-s3", "arnas"),
        ("create", "secrets", "kube-system"),
        ("get", "pods", "arnas"),
    ],
}


@pytest.fixture(scope="module", params=MAY, ids=lambda account: account[1])
def account(request):
    return request.param


@pytest.fixture(scope="module")
def may(installed, account):
    """Asks the server, with a token of the account, what it may (SelfSubjectAccessReview)."""
    namespace, name = account
    api = config.new_client_from_config(str(installed.kubeconfig_of(name, namespace)))
    reviews = client.AuthorizationV1Api(api)

    def may(verb, thing, namespace):
        kind, _, rest = thing.partition("/")
        resource, _, group = kind.partition(".")
        part = {"subresource": rest} if rest in ("exec", "status", "log") else {"name": rest} if rest else {}
        asked = {"verb": verb, "group": group, "resource": resource, "namespace": namespace, **part}
        return reviews.create_self_subject_access_review({"spec": {"resourceAttributes": asked}}).status.allowed

    with api:
        yield may


def test_an_account_may_do_what_it_needs(may, account):
    assert [asked for asked in MAY[account] if not may(*asked)] == []


def test_an_account_may_do_nothing_else(may, account):
    assert [asked for asked in MAY_NOT[account] if may(*asked)] == []
