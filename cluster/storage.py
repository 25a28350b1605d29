"""The store of a run, looked at from elsewhere: with whose credentials, and on which way."""

import base64
import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster import pods

KEYS = {"accesskey": "AWS_ACCESS_KEY_ID", "secretkey": "AWS_SECRET_ACCESS_KEY"}  # of the secret, and what they become
_IDENTITY = (*KEYS.values(), "AWS_SESSION_TOKEN", "ARNAS_S3_SECRET")  # all that says who we are at the store


@contextlib.contextmanager
def environment(core: Any, namespace: str, secret: str, endpoint: str, private_ca: bool) -> Iterator[str]:
    """The environment that a task would have; yields whose credentials these are.

    They are the secret's, as in a task; where it is absent or must not be read, this process's own stand in.

    Args:
        core: Kubernetes' core API.
        namespace: Where the secret is.
        secret: Its name; empty for none.
        endpoint: The store's address, unless AWS_ENDPOINT_URL names another way to it.
        private_ca: Whether the secret's ca.crt signed the store's certificate.
    """
    before, keys = dict(os.environ), _read(core, namespace, secret)
    whole = all(keys.get(key) for key in KEYS)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("AWS_ENDPOINT_URL", endpoint)
        try:
            if whole:
                for variable in _IDENTITY:
                    os.environ.pop(variable, None)
                os.environ.update({variable: keys[key].decode() for key, variable in KEYS.items()})
            if private_ca and keys.get("ca.crt"):
                authority = Path(folder, "ca.crt")
                authority.write_bytes(keys["ca.crt"])
                os.environ["AWS_CA_BUNDLE"] = str(authority)
            yield "the secret's" if whole else "this machine's own"
        finally:
            os.environ.clear()
            os.environ.update(before)


def _read(core: Any, namespace: str, secret: str) -> dict[str, bytes]:
    from kubernetes.client import ApiException

    try:
        found = secret and core.read_namespaced_secret(secret, namespace, _request_timeout=pods.TIMEOUT).data
    except ApiException as error:
        if error.status == 404 or (error.status == 403 and set(_IDENTITY) & os.environ.keys()):
            return {}
        raise
    return {key: base64.b64decode(value or "") for key, value in (found or {}).items()}


def way_to(address: str) -> str:
    """How this machine reaches a store: by its service, if the address is one of the cluster's own."""
    parts = urlsplit(address)
    service = re.fullmatch(r"([a-z0-9-]+)\.([a-z0-9-]+)(\.svc(\..+)?)?", parts.hostname or "")
    if not service:
        return f"curl -I {address} says more; where another address leads there, set AWS_ENDPOINT_URL to it"
    port = parts.port or {"https": 443}.get(parts.scheme, 80)
    here = port if port > 1023 else port + 8000  # those below are the administrator's
    return (
        f"kubectl -n {service[2]} port-forward svc/{service[1]} {here}:{port}, and set "
        f"AWS_ENDPOINT_URL={parts.scheme}://localhost:{here}"
    )
