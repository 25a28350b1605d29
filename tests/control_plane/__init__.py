"""A real Kubernetes control plane for tests: etcd and kube-apiserver on loopback, without nodes or controllers.

What an API server checks by itself is real here: schemas, defaults, rights, pod security, service account tokens.
Nothing is scheduled, and no controller makes what others make (a namespace has no service account `default`, a job no
pod, a deleted namespace stays): tests create what they need.
"""

import csv
import json
import os
import secrets
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

BINARIES = ("etcd", "kube-apiserver", "kubectl")
PATIENCE = 60  # seconds for a start that takes about six


def binary(name: str) -> Path:
    """Path of a program of the control plane: where KUBE_APISERVER, ETCD, KUBECTL name one, else in our cache.

    Raises:
        FileNotFoundError: It is not there; the text says how to get it.
    """
    variable = name.upper().replace("-", "_")
    cache = Path(os.environ.get("ARNAS_CACHE") or Path.home() / ".cache" / "arnas")
    path = Path(os.environ.get(variable) or cache / "bin" / name)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}; `make control-plane` builds it, or {variable} names another one.")
    return path


@dataclass(frozen=True)
class ControlPlane:
    """A running API server, its address, and the folder of its files."""

    url: str
    folder: Path
    kubeconfig: Path  # of an administrator

    def kubectl(self, *arguments: str, stdin: str | None = None, kubeconfig: Path | None = None) -> str:
        """What kubectl prints; its own message is the text of the error where it fails."""
        command = [str(binary("kubectl")), f"--kubeconfig={kubeconfig or self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=self.folder)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return done.stdout

    def kubeconfig_of(self, service_account: str, namespace: str) -> Path:
        """A kubeconfig with a fresh token of a service account that exists."""
        token = self.kubectl("create", "token", service_account, f"--namespace={namespace}").strip()
        return self._write_kubeconfig(f"{namespace}.{service_account}", token, namespace)

    def _write_kubeconfig(self, user: str, token: str, namespace: str = "default") -> Path:
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "ca.crt")}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": user, "context": {"cluster": "test", "user": user, "namespace": namespace}}],
            "current-context": user,
        }
        path = self.folder / f"{user}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))  # JSON is YAML
        return path


@contextmanager
def started(folder: Path) -> Iterator[ControlPlane]:
    """Run a fresh control plane with its keys, data and logs in an empty `folder`; both programs end with the block."""
    etcd, apiserver = binary("etcd"), binary("kube-apiserver")
    client_port, peer_port, port = _free_ports(3)
    token = secrets.token_hex(16)
    with (folder / "tokens.csv").open("w") as file:
        csv.writer(file).writerow([token, "admin", "admin", "system:masters"])
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "server.key")  # signs service accounts' tokens too
    certificate.cert_chain_pems[0].write_to_path(folder / "server.crt")

    store, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    url = f"https://127.0.0.1:{port}"
    with ExitStack() as stack:
        programs = [
            stack.enter_context(_running(folder, command))
            for command in (
                [
                    etcd,
                    f"--data-dir={folder}/etcd",
                    f"--listen-client-urls={store}",
                    f"--advertise-client-urls={store}",
                    f"--listen-peer-urls={peer}",
                    f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster=default={peer}",
                    "--unsafe-no-fsync",
                ],
                [
                    apiserver,
                    f"--etcd-servers={store}",
                    "--bind-address=127.0.0.1",
                    "--advertise-address=127.0.0.1",
                    "--endpoint-reconciler-type=none",
                    f"--secure-port={port}",
                    f"--tls-cert-file={folder}/server.crt",
                    f"--tls-private-key-file={folder}/server.key",
                    f"--token-auth-file={folder}/tokens.csv",
                    "--authorization-mode=RBAC",
                    "--allow-privileged",  # so that pod security is what forbids it
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={folder}/server.key",
                    f"--service-account-signing-key-file={folder}/server.key",
                    "--service-cluster-ip-range=10.0.0.0/24",
                ],
            )
        ]
        _wait(url, token, folder, programs)
        plane = ControlPlane(url, folder, folder / "admin.kubeconfig")
        plane._write_kubeconfig("admin", token)
        yield plane


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _running(folder: Path, command: list[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()  # nothing of it is needed again
        process.wait()


def _wait(url: str, token: str, folder: Path, programs: list[subprocess.Popen[bytes]]) -> None:
    """Return when the server says that it is ready, which is after the roles of RBAC and the like were made."""
    request = urllib.request.Request(f"{url}/readyz", headers={"Authorization": f"Bearer {token}"})
    trust = ssl.create_default_context(cafile=folder / "ca.crt")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and all(program.poll() is None for program in programs):
        try:
            with urllib.request.urlopen(request, context=trust, timeout=5):
                return
        except OSError:  # refused, or not ready yet
            time.sleep(0.1)
    logs = "\n".join(log.read_text(errors="replace")[-2000:] for log in sorted(folder.glob("*.log")))
    raise RuntimeError(f"The control plane did not start within {PATIENCE} s:\n{logs}")
