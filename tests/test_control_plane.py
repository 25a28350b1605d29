"""The control plane that other tests stand on refuses, allows and ends as a real one does."""

import subprocess

import control_plane
import pytest

POD = """
apiVersion: v1
kind: Pod
metadata: {name: intruder, namespace: kube-public}
spec:
  serviceAccountName: worker
  containers: [{name: main, image: "example/image:1", securityContext: {privileged: true}}]
"""


def test_it_admits_and_refuses_as_kubernetes_does(cluster):
    cluster.kubectl("create", "serviceaccount", "worker", "--namespace=kube-public")
    cluster.kubectl("apply", "--dry-run=server", "-f-", stdin=POD)
    cluster.kubectl("label", "namespace", "kube-public", "pod-security.kubernetes.io/enforce=restricted")
    with pytest.raises(RuntimeError, match='violates PodSecurity "restricted:latest": privileged'):
        cluster.kubectl("apply", "--dry-run=server", "-f-", stdin=POD)


def test_a_service_account_may_do_nothing_yet(cluster):
    cluster.kubectl("create", "serviceaccount", "nobody", "--namespace=kube-public")
    nobody = cluster.kubeconfig_of("nobody", "kube-public")
    assert "system:serviceaccount:kube-public:nobody" in cluster.kubectl("auth", "whoami", kubeconfig=nobody)
    with pytest.raises(RuntimeError, match="cannot list resource"):
        cluster.kubectl("get", "secrets", kubeconfig=nobody)


def test_a_failure_within_leaves_no_program_running(tmp_path, cluster):
    def running():
        lines = subprocess.run(["ps", "-Awwo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
        return [line for line in lines if str(tmp_path) in line]

    with pytest.raises(RuntimeError, match="of the test"), control_plane.started(tmp_path):
        assert len(running()) == 2
        raise RuntimeError("of the test")
    assert running() == []


def test_a_program_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("ETCD", str(tmp_path / "etcd"))
    with pytest.raises(FileNotFoundError, match=r"There is no .*etcd; `make control-plane` builds it, or ETCD names"):
        control_plane.binary("etcd")
