"""Objects in a bucket of MinIO, SeaweedFS or another S3 store; the only code that talks to one.

A store that is away for a while (restarted, overloaded, cut off) is waited for; a mistake (no such bucket, no rights, a
wrong key) is said at once. Where the store is and who we are stands in the environment: see docs/store.md.
"""

import hashlib
import io
import os
import random
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit
from xml.etree.ElementTree import ParseError

import certifi
import urllib3
from minio import Minio, S3Error
from minio.error import MinioException, ServerError
from minio.helpers import check_bucket_name

from arnas.errors import InvalidInput, Unreachable

#: Seconds without an answer after which a try has failed, and bytes of an object that are sent in that time at least
TIMEOUT = 20.0
PART = 16 * 2**20

#: Objects of a folder that are read at once
READERS = 8

#: Answers with a status below 500 that another try may change: the request or its body was damaged on the way
_DAMAGED_ON_THE_WAY = ("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch")

#: Answers to credentials that are wrong, or that were replaced
_WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch")
_WRONG_TOKEN = ("ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidTokenId")

#: How a place in a bucket begins
_SCHEMES = ("s3://", "minio://")

#: An upload of a folder, and its removal, begins by writing this and ends by removing it
_UNFINISHED = ".unfinished"

Result = TypeVar("Result")
Patience = Callable[[], float]


def is_place(place: str | Path) -> bool:
    """Whether a place is in a bucket (s3://..., or minio://... as KFP shows its artifacts) and no folder.

    Raises:
        InvalidInput: It looks like one, but is misspelt.
    """
    if str(place).startswith("s3:") and not str(place).startswith("s3://"):
        raise InvalidInput(f"{place} is neither a folder nor a place in a bucket; write s3://BUCKET/PREFIX.")
    return str(place).startswith(_SCHEMES)


def patience() -> float:
    """The longest outage that is waited for, in seconds: ARNAS_S3_PATIENCE, or ten minutes.

    Raises:
        InvalidInput: It is no number of seconds.
    """
    told = os.environ.get("ARNAS_S3_PATIENCE", "600")
    if not told.isdecimal():
        raise InvalidInput(f"ARNAS_S3_PATIENCE is {told!r}; give a whole number of seconds, such as 600.")
    return float(told)


@dataclass(frozen=True)
class Entry:
    """An object as listed.

    Attributes:
        size: In bytes.
        modified: When it was written, by the store's clock.
    """

    size: int
    modified: datetime


class Bucket:
    """What a bucket holds below a prefix.

    Every method waits through an outage, for at most `patience()` seconds (asked anew all the while), and raises
    Unreachable after that; a request that the store refuses raises InvalidInput. Messages hold no secret.

    Args:
        place: s3://BUCKET or s3://BUCKET/PREFIX.

    Raises:
        InvalidInput: The place or the environment is not usable; the store is not asked yet.
    """

    def __init__(self, place: str | Path, patience: Patience = patience):
        self.place = str(place).rstrip("/")
        self.patience = patience
        patience()  # a value that cannot be used is said now, and not in an outage
        self.name, _, prefix = self.place.partition("://")[2].partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        try:
            check_bucket_name(self.name, strict=True)
        except ValueError as error:
            raise InvalidInput(f"{place} names no bucket ({error}); write s3://BUCKET/PREFIX.") from None
        if {".", ".."} & set(prefix.split("/")):
            raise InvalidInput(f"{place} has a part . or .., which no object may have; write s3://BUCKET/PREFIX.")
        self._client, self.endpoint, self._keys = _connect()

    def make(self) -> bool:
        """Make the bucket if there is none; returns whether there was none."""

        def ask() -> bool:
            if self._client.bucket_exists(self.name):
                return False
            try:
                self._client.make_bucket(self.name)
            except S3Error as error:
                if error.code != "BucketAlreadyOwnedByYou":  # by somebody else, or by a try whose answer was lost
                    raise
            return True

        return self._insist(ask)

    def put(self, name: str, content: bytes | Path) -> None:
        """Write an object: the bytes, or those of a file. Nobody sees it before it is whole."""
        digest = _digest(content)

        def send() -> None:
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as stream:
                size = len(content) if isinstance(content, bytes) else os.fstat(stream.fileno()).st_size
                self._client.put_object(
                    self.name,
                    self.prefix + name,
                    stream,
                    size,
                    metadata={"sha256": digest},
                    part_size=PART,
                    num_parallel_uploads=1,
                )

        self._insist(send)

    def get(self, name: str, file: Path, digest: str | None = None) -> bool:
        """Read an object into a file.

        Args:
            digest: The SHA-256 that its bytes must have; by default the one that was noted by `put`, if it was.

        Returns:
            Whether there is such an object.

        Raises:
            InvalidInput: Its bytes have another SHA-256.
        """

        def receive() -> tuple[str, str] | None:
            try:
                response = self._client.get_object(self.name, self.prefix + name)
            except S3Error as error:
                if error.code == "NoSuchKey":
                    return None
                raise
            found = hashlib.sha256()
            try:
                with file.open("wb") as target:
                    for chunk in response.stream(2**20):
                        found.update(chunk)
                        target.write(chunk)
            finally:
                response.close()
            return found.hexdigest(), digest or response.headers.get("x-amz-meta-sha256") or found.hexdigest()

        digests = self._insist(receive)
        if digests and digests[0] != digests[1]:
            file.unlink()
            raise InvalidInput(
                f"{self.place}/{name} is damaged: its SHA-256 is {digests[0]}, not {digests[1]}; remove it."
            )
        return digests is not None

    def list(self, below: str = "") -> dict[str, Entry]:
        """The objects whose name begins with `below`, in the order of their names."""

        def ask() -> dict[str, Entry]:
            found = self._client.list_objects(self.name, prefix=self.prefix + below, recursive=True)
            return {
                str(entry.object_name).removeprefix(self.prefix): Entry(entry.size or 0, entry.last_modified)
                for entry in found
                if entry.last_modified is not None and not str(entry.object_name).endswith("/")
            }

        return dict(sorted(self._insist(ask).items()))

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        self._insist(lambda: self._client.remove_object(self.name, self.prefix + name))

    def probe(self) -> None:
        """Write, list, read and remove a small object, so that what is missing is known before work starts."""
        name, content = f".probe-{os.urandom(8).hex()}", os.urandom(1024)
        self.list(".probe-")  # first: SeaweedFS makes a bucket that is missing when something is written there
        self.put(name, content)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                there = name in self.list(".probe-") and self.get(name, Path(scratch) / name)
        finally:
            self.remove(name)
        if not there:
            raise InvalidInput(
                f"{self.place} does not give back what is written there; choose a consistent store, or drop a //."
            )

    def _insist(self, request: Callable[[], Result]) -> Result:
        """Make a request again and again until the store answers."""
        began, tries = time.monotonic(), 0
        while True:
            try:
                result = request()
            except (MinioException, urllib3.exceptions.HTTPError, ParseError) as error:
                reason = _passing(error)
                if reason is None and self._renewed(error):
                    continue
                if reason is None:
                    raise self._refusal(error) from None
            else:
                if tries:
                    _say(f"{self.endpoint} answers again, after {time.monotonic() - began:.0f} s.")
                return result
            tries += 1
            pause = random.SystemRandom().uniform(0.5, 1) * min(2.0 ** (tries - 1), 15)
            _say(
                f"{self.endpoint} is away ({reason}), for {time.monotonic() - began:.0f} s so far; "
                f"try {tries + 1} follows in {pause:.1f} s, the last one after {self.patience():.0f} s."
            )
            self._wait(pause, began, reason)

    def _wait(self, pause: float, began: float, reason: str) -> None:
        until = time.monotonic() + pause
        while (now := time.monotonic()) < until:
            if now - began > self.patience():
                raise Unreachable(
                    f"{self.endpoint} has been away for {now - began:.0f} s ({reason}); what was saved before is kept. "
                    "Mend the store and start again, or wait longer by ARNAS_S3_PATIENCE (seconds)."
                )
            time.sleep(min(0.1, until - now))

    def _renewed(self, error: Exception) -> bool:
        """Whether credentials that are refused have been replaced meanwhile, as a mounted secret can be."""
        if _answer(error)[0] not in (*_WRONG_KEYS, *_WRONG_TOKEN) or _credentials() == self._keys:
            return False
        self._client, self.endpoint, self._keys = _connect()
        return True

    def _refusal(self, error: Exception) -> InvalidInput:
        code, _ = _answer(error)
        if code == "NoSuchBucket":
            return InvalidInput(f"There is no bucket {self.name} at {self.endpoint}; make it, or name another.")
        if code in _WRONG_KEYS:
            return InvalidInput(f"{self.endpoint} does not accept the credentials; mend {_source()}.")
        if code in _WRONG_TOKEN:
            return InvalidInput(
                f"{self.endpoint} does not accept the session token, or no longer ({code}); renew AWS_SESSION_TOKEN "
                "and the keys that belong to it."
            )
        if code == "RequestTimeTooSkewed":
            return InvalidInput(
                f"The clocks of this machine and of {self.endpoint} differ too much ({code}); mend the wrong one."
            )
        if code.endswith("QuotaExceeded"):
            return InvalidInput(f"The quota for {self.place} is used up ({code}); raise it, or remove what is old.")
        if code in ("AccessDenied", "AllAccessDisabled"):
            return InvalidInput(
                f"{self.endpoint} denies access to {self.place}; these credentials need the right to list, read, write "
                "and remove there."
            )
        if isinstance(error, urllib3.exceptions.SSLError):
            reason = getattr(error.args[0], "verify_message", "") or getattr(error.args[0], "reason", "")
            return InvalidInput(
                f"{self.endpoint} cannot be trusted ({reason}); AWS_CA_BUNDLE must name the file of its CA, and "
                "AWS_ENDPOINT_URL the scheme and host that its certificate is for."
            )
        return InvalidInput(
            f"{self.endpoint} refuses {self.place} ({code}); mend AWS_ENDPOINT_URL, AWS_REGION or the place."
        )


def download(place: str | Path, folder: Path) -> None:
    """Copy what lies below a place in a bucket into a folder, several objects at a time, saying how far it is.

    Raises:
        InvalidInput: Nothing lies there, an upload to it is unfinished, an object is damaged, or the folder cannot be
            written.
    """
    left = threading.Event()
    bucket = Bucket(place, lambda: 0 if left.is_set() else patience())
    entries = bucket.list()
    if not entries:
        raise InvalidInput(f"{place} holds nothing; name the place of a data set.")
    if _UNFINISHED in entries:
        raise InvalidInput(f"The upload to {place} is not finished; repeat it.")
    for name in entries:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise InvalidInput(f"{place} holds an object named {name!r}, which is no name for a file; remove it.")
    progress = _Progress(f"reading {place}", sum(entry.size for entry in entries.values()))
    with ThreadPoolExecutor(READERS, "download") as pool:
        coming = {pool.submit(_fetch, bucket, name, folder / name): entry.size for name, entry in entries.items()}
        try:
            for done in as_completed(coming):
                done.result()
                progress.advance(coming[done])
        except BaseException:  # also when the process is asked to stop: no other object is begun, no outage waited for
            left.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(bucket: Bucket, name: str, file: Path) -> None:
    if not _read(bucket, name, file):
        raise InvalidInput(f"{bucket.place}/{name} was removed while it was read; try again.")


def _read(bucket: Bucket, name: str, file: Path) -> bool:
    """Whether there is an object, whose content is in the file then."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return bucket.get(name, file)
    except OSError as error:
        raise InvalidInput(f"{file} cannot be written: {error.strerror}; make space there.") from None


def upload(folder: Path, place: str | Path) -> None:
    """Copy a folder to a place in a bucket that is empty, or holds the beginning of this upload.

    Raises:
        InvalidInput: There is no such folder, or the place is taken.
    """
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    if not files:
        raise InvalidInput(f"{folder} holds no file to upload; name a folder that does.")
    require_free(place)
    bucket = Bucket(place)
    present = bucket.list()
    bucket.put(_UNFINISHED, b"")
    progress = _Progress(f"writing {place}", sum(file.stat().st_size for file in files.values()))
    for name, file in files.items():
        bucket.put(name, file)
        progress.advance(file.stat().st_size)
    for name in present.keys() - files.keys() - {_UNFINISHED}:
        bucket.remove(name)
    bucket.remove(_UNFINISHED)


def is_whole(place: str | Path) -> bool:
    """Whether something lies below a place in a bucket, and its upload is finished."""
    present = Bucket(place).list()
    return bool(present) and _UNFINISHED not in present


def require_free(place: str | Path) -> None:
    """Refuse a place in a bucket that holds anything but the beginning of an upload."""
    if is_whole(place):
        raise InvalidInput(f"{place} holds objects already; name an empty place.")


def remove(place: str | Path) -> None:
    """Remove all that lies below a place in a bucket; what is left when that is cut off counts as unfinished."""
    bucket = Bucket(place)
    names = bucket.list().keys() - {_UNFINISHED}
    bucket.put(_UNFINISHED, b"")
    for name in (*names, _UNFINISHED):
        bucket.remove(name)


@contextmanager
def fetched(place: str | Path) -> Iterator[Path]:
    """A folder or file as a path; where it lies in a bucket, that of a copy, which is removed at the end.

    Raises:
        InvalidInput: As `download` says.
    """
    if not is_place(place):
        yield Path(place)
        return
    above, _, name = str(place).rstrip("/").rpartition("/")
    with tempfile.TemporaryDirectory(prefix="arnas-") as scratch:
        copy = Path(scratch) / name
        if above.endswith(":/") or not _read(Bucket(above), name, copy):
            download(place, copy)
        yield copy


@contextmanager
def stored(place: str | Path) -> Iterator[Path]:
    """A path to write a folder to; where it belongs into a bucket, that of a copy, which is uploaded at the end.

    Raises:
        InvalidInput: The place in the bucket is taken.
    """
    if not is_place(place):
        yield Path(place)
        return
    require_free(place)
    with tempfile.TemporaryDirectory(prefix="arnas-") as scratch:
        copy = Path(scratch) / "artifact"
        yield copy
        if copy.exists():
            upload(copy, place)


class _Progress:
    """A line every five seconds, and one at the end."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done = what, total, 0
        self._said = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        if self.done == self.total or time.monotonic() - self._said > 5:
            self._said = time.monotonic()
            _say(f"{self.what}: {self.done / 1e6:.1f} of {self.total / 1e6:.1f} MB.")


_Keys = tuple[str, str, str | None, str]


def _connect() -> tuple[Minio, str, _Keys]:
    """A client made from the environment, the store's address for messages, and the credentials."""
    address = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
    if address.scheme not in ("http", "https") or not address.hostname or address.username or address.path.strip("/"):
        raise InvalidInput(
            "A place in a bucket needs AWS_ENDPOINT_URL, the address of the store without user, password or path, "
            "such as http://minio.arnas:9000."
        )
    access_key, secret_key, token, authority = keys = _credentials()
    secure = address.scheme == "https"
    http = urllib3.PoolManager(
        timeout=urllib3.Timeout(TIMEOUT),
        maxsize=READERS,
        retries=False,  # Bucket tries again, and says so
        ssl_context=_trust(authority) if secure else None,
    )
    try:
        region = os.environ.get("AWS_REGION")
        client = Minio(address.netloc, access_key, secret_key, token, secure, region, http_client=http)
    except ValueError as error:
        raise InvalidInput(f"AWS_ENDPOINT_URL or AWS_REGION cannot be used: {error}.") from None
    return client, f"{address.scheme}://{address.netloc}", keys


def _credentials() -> _Keys:
    """Access key, secret key, session token, and the file of a private CA ("" for the public ones)."""
    authority = os.environ.get("AWS_CA_BUNDLE", "")
    if not (folder := os.environ.get("ARNAS_S3_SECRET")):
        keys = [os.environ.get(name, "") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        if not all(keys):
            raise InvalidInput(f"A place in a bucket needs credentials; set {_source()}.")
        return keys[0], keys[1], os.environ.get("AWS_SESSION_TOKEN"), authority
    try:
        access_key, secret_key = ((Path(folder) / name).read_text().strip() for name in ("accesskey", "secretkey"))
    except (OSError, ValueError):
        raise InvalidInput(
            f"ARNAS_S3_SECRET is {folder}, which must be a folder with the files accesskey and secretkey."
        ) from None
    mounted = Path(folder) / "ca.crt"
    return access_key, secret_key, None, authority or (str(mounted) if mounted.exists() else "")


def _source() -> str:
    """Where the credentials come from, for messages."""
    if folder := os.environ.get("ARNAS_S3_SECRET"):
        return f"accesskey and secretkey in {folder}"
    return "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ARNAS_S3_SECRET (a folder with accesskey and secretkey)"


def _trust(authority: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority or certifi.where())
    except OSError:  # ssl.SSLError is one
        raise InvalidInput(
            f"{authority} holds no certificate of an authority; AWS_CA_BUNDLE must name a PEM file of the store's CA."
        ) from None


def _passing(error: Exception) -> str | None:
    """Why the store is away for now, in a few words; None where another try would not help."""
    if isinstance(error, ParseError):
        return "half an answer"
    if isinstance(error, MinioException):
        code, status = _answer(error)
        return code if status >= 500 or status == 429 or code in _DAMAGED_ON_THE_WAY else None
    cause = error.args[0] if isinstance(error, urllib3.exceptions.SSLError) else error.__cause__
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return None
    late = isinstance(error, urllib3.exceptions.TimeoutError)
    return getattr(cause, "strerror", None) or ("no answer in time" if late else "connection broken")


def _answer(error: Exception) -> tuple[str, int]:
    """The store's word for an error, and its HTTP status."""
    if isinstance(error, S3Error):
        return error.code or "", int(error.response.status)
    status = error.status_code if isinstance(error, ServerError) else int(getattr(error, "_code", 0))
    return f"HTTP {status}", status


def _digest(content: bytes | Path) -> str:
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _say(message: str) -> None:
    print(f"[store] {message}", file=sys.stderr, flush=True)
