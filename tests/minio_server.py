"""A real MinIO server for tests: found or built, started on a free port of this machine, killed and started again.

`python tests/minio_server.py` (make minio) prints where the server's program is, and builds it where it is missing.
Needs the standard library only.
"""

import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

#: Commit 7aac2a2 of 12 February 2026, under the name that Go gives a commit
VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
CACHE = Path(os.environ.get("ARNAS_CACHE") or Path.home() / ".cache" / "arnas")

#: Put before a program: it kills itself when it has sent the first part of an object of several
DIES_AMID_AN_UPLOAD = """
import os, signal, urllib3
send = urllib3.PoolManager.urlopen
def dying(self, method, url, **more):
    if "partNumber=2" in url:
        os.kill(os.getpid(), signal.SIGKILL)
    return send(self, method, url, **more)
urllib3.PoolManager.urlopen = dying
"""


def find():
    """Path of the server's program: MINIO, then PATH, then the cache; None where there is none."""
    return os.environ.get("MINIO") or shutil.which("minio", path=f"{os.environ['PATH']}{os.pathsep}{CACHE / 'bin'}")


def build():
    """Build the server into the cache; takes some minutes, most of them downloading."""
    if not shutil.which("go"):
        sys.exit("MinIO is not here, and neither is Go to build it; install one, or name a minio program in MINIO.")
    binaries = CACHE / "bin"
    binaries.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"GOBIN": str(binaries), "CGO_ENABLED": "0"}
    subprocess.run(["go", "install", f"github.com/minio/minio@{VERSION}"], env=environment, check=True)
    return str(binaries / "minio")


class Server:
    """A server with random credentials; use as a context.

    Args:
        folder: Where it keeps its data and its log.
        certificate: A trustme certificate to serve TLS with.
        port: Where it listens; by default one that is free.
    """

    name = "MinIO"

    def __init__(self, folder, certificate=None, port=None):
        self.folder, self.certificate = Path(folder), certificate
        self.access_key, self.secret_key = secrets.token_hex(8), secrets.token_hex(16)
        self.port = port or free_port()
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def __enter__(self):
        certificates = self.folder / "certificates"
        certificates.mkdir(parents=True, exist_ok=True)
        if self.certificate:
            self.certificate.private_key_pem.write_to_path(certificates / "private.key")
            self.certificate.cert_chain_pems[0].write_to_path(certificates / "public.crt")
        self.start()
        return self

    def __exit__(self, *exception):
        self.kill()

    def start(self):
        """Start it, on the same port and data as before; returns when it serves."""
        command, environment = self._command()
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not start: {(self.folder / 'log').read_text()}")
            time.sleep(0.05)

    def client(self, http_client=None):
        """Another client than ours, to look at what is there."""
        from minio import Minio

        address = f"127.0.0.1:{self.port}"
        secure = bool(self.certificate)
        return Minio(address, self.access_key, self.secret_key, secure=secure, http_client=http_client)

    def lead(self, monkeypatch, bucket):
        """Lead the environment to it, and make a bucket."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        self.client().make_bucket(bucket)

    def reader(self):
        """Access key and secret key of one who may read and list."""
        from minio.credentials import StaticProvider
        from minio.minioadmin import MinioAdmin

        owner = StaticProvider(self.access_key, self.secret_key)
        admin = MinioAdmin(endpoint=f"127.0.0.1:{self.port}", credentials=owner, secure=False)
        keys = f"reader-{secrets.token_hex(4)}", secrets.token_hex(8)
        admin.user_add(*keys)
        admin.policy_set("readonly", user=keys[0])
        return keys

    def kill(self):
        """SIGKILL, at whatever it does."""
        self.process.kill()
        self.process.wait()

    def freeze(self):
        """It takes connections and does not answer, until `thaw`; returns when it has stopped."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def _command(self):
        """The command that starts it, and what its environment has besides ours."""
        options = ["--address", f"127.0.0.1:{self.port}", "--console-address", "127.0.0.1:0"]
        options += ["--certs-dir", self.folder / "certificates", "--quiet"]
        keys = {"MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key}
        return [find(), "server", *options, self.folder / "data"], keys

    def _ready(self):
        """Whether it answers requests; MinIO's /minio/health/ready says yes some time before."""
        context = ssl._create_unverified_context() if self.certificate else None
        try:
            urllib.request.urlopen(self.url, timeout=5, context=context).close()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 403  # who are you?
        except OSError:
            return False
        return True


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    print(find() or build())
