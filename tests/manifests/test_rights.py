"""The accounts of the manifests may do what they need, and nothing beside it, by the word of a real API server."""

import pytest
import yaml
from kubernetes import client, config
from manifests.rendered import objects

from cluster import preflight

RUNNER = ("kubeflow", "arnas-runner")
KEYS = ("arnas", "arnas-secret")
ASKER = ("asking", "arnas-runner")  # the runs' account where components/preflight is applied

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
    ASKER: [
        ("list", "nodes", ""),
        ("get", "configmaps/workflow-controller-configmap", "kubeflow"),
        ("get", "namespaces/asking", "asking"),
        ("get", "serviceaccounts/arnas-runner", "asking"),
        ("list", "resourcequotas", "asking"),
        ("get", "localqueues.kueue.x-k8s.io/arnas", "asking"),
        ("get", "secrets/arnas-s3", "asking"),
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
    ASKER: [
        ("update", "nodes", ""),
        ("get", "configmaps/other", "kubeflow"),
        ("update", "configmaps/workflow-controller-configmap", "kubeflow"),
        ("get", "namespaces/kubeflow", "kubeflow"),
        ("list", "resourcequotas", "kubeflow"),
        ("create", "serviceaccounts", "asking"),
        ("get", "secrets/other", "asking"),
        ("list", "secrets", "asking"),
        ("create", "pods", "asking"),
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


@pytest.fixture(scope="module", autouse=True)
def asking(installed):
    """A namespace of runs whose account has the rights of components/preflight, too."""
    namespace, name = ASKER
    installed.kubectl("create", "namespace", namespace)
    for thing in [*objects("base/runs"), *objects("components/preflight")]:
        if thing["kind"] in ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"):
            if "namespace" in thing["metadata"]:
                thing["metadata"]["namespace"] = namespace
            for subject in thing.get("subjects", []):
                subject["namespace"] = namespace
            installed.kubectl("apply", "-f-", stdin=yaml.safe_dump(thing))
    return installed.kubeconfig_of(name, namespace)


@pytest.fixture(scope="module", params=MAY, ids=".".join)
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


def test_preflight_as_the_first_task_of_a_run_learns_all_but_whether_a_pod_is_accepted(asking, installed):
    api = config.new_client_from_config(str(asking))
    namespace, name = ASKER
    needs = preflight.Needs(namespace=namespace, service_account=name, gpus=1, queue="arnas", secret="arnas-s3")
    needs = needs.model_copy(update={"checkpoints": "s3://arnas/checkpoints", "endpoint": "http://127.0.0.1:1"})
    checks = tuple(check for check in preflight.CHECKS if check is not preflight.kfp)

    def refused(findings):
        return {check for check, found in findings.items() if found.what.endswith("may not ask")}

    with api:
        assert refused(preflight.run(preflight.Cluster(api), needs, checks)) == {"pod"}


def test_an_account_may_do_nothing_else(may, account):
    assert [asked for asked in MAY_NOT[account] if may(*asked)] == []
