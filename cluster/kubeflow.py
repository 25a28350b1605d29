"""Kubeflow Pipelines' API, as `kfp.Client` reaches it: environment, ~/.config/kfp, a kubeconfig, or a pod's account."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from arnas.errors import InvalidInput

NAMESPACE = "kubeflow"  # where KFP is installed, and where it runs pods unless it serves several users
FORWARD = "kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8888:80"  # the UI, which hands on the API
TIMEOUT = (10, 60)  # seconds to connect and to answer; KFP's client would wait for ever


def connect(endpoint: str | None = None) -> Any:
    """A `kfp.Client` whose server has answered.

    Args:
        endpoint: Address of KFP's API or UI (default: what `kfp` finds by itself).

    Raises:
        InvalidInput: There is no address, or nothing of KFP answers there.
    """
    import kfp

    class Client(kfp.Client):  # type: ignore[misc]
        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            """KFP's own tries five times without a limit of time, and keeps the reason for itself."""
            address = self.runs.api_client.configuration.host
            if address == "http://localhost":  # the client's default, where it has found nothing
                raise InvalidInput("It is not known where KFP is; give --endpoint URL, or set KF_PIPELINES_ENDPOINT.")
            health = self.healthzs.healthz_service_get_healthz(_request_timeout=TIMEOUT)
            if getattr(health, "multi_user", None) is None:
                raise InvalidInput(f"What answers at {address} is not KFP's API; give its address, and sign in first.")
            return health

    parts = urlsplit(endpoint or "")
    if parts.username or parts.password:
        raise InvalidInput(
            "--endpoint must not hold a user or a password; sign in as `kfp` does, and give the address."
        )
    if endpoint and parts.scheme not in ("http", "https"):
        raise InvalidInput(f"--endpoint {endpoint} is no address; write one such as http://localhost:8888.")
    with answered(endpoint), _quiet():
        client = Client(host=endpoint, namespace=NAMESPACE)
        client.get_kfp_healthz()
    return client


def version(client: Any) -> tuple[int, ...] | None:
    """KFP's version, such as (2, 17, 0); None where the server was built without one."""
    with answered():  # only the older health page has it, under another name where the UI hands it on
        told = client.runs.api_client.call_api(
            "/apis/v1beta1/healthz",
            "GET",
            response_type="object",
            _return_http_data_only=True,
            _request_timeout=TIMEOUT,
        )
    told = told if isinstance(told, dict) else {}
    parts = str(told.get("tag_name") or told.get("apiServerTagName")).partition("-")[0].split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else None


@contextlib.contextmanager
def answered(endpoint: str | None = None) -> Iterator[None]:
    """Turn what KFP refuses, and its silence, into one sentence.

    Raises:
        InvalidInput: KFP did not do what it was asked.
    """
    import kfp_server_api
    from urllib3.exceptions import HTTPError

    place = f"KFP at {endpoint}" if endpoint else "KFP"
    try:
        yield
    except kfp_server_api.ApiException as error:
        raise InvalidInput(f"{place} refuses: {reason(error)}.") from None
    except (HTTPError, OSError) as error:
        mend = f"give --endpoint URL; {FORWARD} makes it http://localhost:8888"
        raise InvalidInput(f"{place} does not answer ({reason(error)}); {mend}.") from None


def reason(error: Exception) -> str:
    """What went wrong, in a few words: neither headers nor addresses with what may stand in them."""
    status, body = getattr(error, "status", None), getattr(error, "body", None)
    if status is None:
        return type(getattr(error, "reason", error)).__name__
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        told = json.loads(str(body))
        body = told.get("message") or told.get("error") or body
    text = " ".join(str(body or getattr(error, "reason", "")).split())
    return f"{status} {text[:500]}".strip().rstrip(".")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's warnings of its own age, its tracebacks in the log, and its words on standard output."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
