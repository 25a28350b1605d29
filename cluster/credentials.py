"""The store's keys, made in the cluster: a job of manifests/base/store runs it, and nobody types or sees them.

`python -m cluster.credentials NAMESPACE...` gives each namespace the secret `arnas-s3`. One that is there stays as it
is, so a second run changes nothing, and a store that has keys already keeps them.
"""

import secrets
import sys
from typing import Any

from arnas.errors import InvalidInput

SECRET = "arnas-s3"


def ensure(api: Any, namespaces: list[str]) -> list[str]:
    """Give each namespace the secret: with the keys that one of them has, or else with new ones.

    Args:
        api: A `kubernetes.client.ApiClient`.
        namespaces: Names of namespaces that exist.

    Returns:
        The namespaces that did not have it.

    Raises:
        InvalidInput: Two of them have different keys.
    """
    from kubernetes import client

    core = client.CoreV1Api(api)
    found = {name: data for name in namespaces if (data := _keys(core, name)) is not None}
    known = list(found.values())
    if any(keys != known[0] for keys in known):
        raise InvalidInput(
            f"Secret {SECRET} differs between the namespaces {', '.join(found)}; delete all but the one with the "
            "store's keys, and start again."
        )
    lacking = [name for name in namespaces if name not in found]
    new = {"accesskey": secrets.token_hex(10), "secretkey": secrets.token_hex(20)}
    keys = {"data": known[0]} if known else {"stringData": new}
    for name in lacking:
        core.create_namespaced_secret(name, {"metadata": {"name": SECRET}, **keys})
    return lacking


def _keys(core: Any, namespace: str) -> dict[str, str] | None:
    from kubernetes.client import ApiException

    try:
        return dict(core.read_namespaced_secret(SECRET, namespace).data or {})
    except ApiException as error:
        if error.status == 404:
            return None
        raise


def main(namespaces: list[str]) -> int:
    """Do it in the cluster that this process runs in; returns the exit status."""
    from kubernetes import client, config

    config.load_incluster_config()
    try:
        made = ensure(client.ApiClient(), namespaces)
    except InvalidInput as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Secret {SECRET}: made in {', '.join(made) or 'no namespace'}; it is in {', '.join(namespaces)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
