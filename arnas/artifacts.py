"""Artifacts: what stages hand to one another. A folder with `artifact.json`, tensors as safetensors, and a digest.

`artifact.json` holds `kind`, `content` (what the stage says), `files` (their SHA-256), `digest` (over those three) and
`origin` (versions, seconds, memory: what differs from run to run and is therefore outside the digest).
"""

import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from arnas.errors import InvalidInput

SCHEMA = "arnas/1"
DAY = 86_400.0  # seconds


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def publish(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what the block writes there becomes `path` at once, or never.

    An old folder makes way for a new one in two steps: whoever is killed between them leaves neither. What writers that
    were killed have left is removed when it is a day old.

    Raises:
        InvalidInput: The place cannot be written, or its disk is full.
    """
    path = Path(path)
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield scratch / path.name
        new, old = scratch / path.name, scratch / "old"
        if path.is_dir() and new.exists():
            os.rename(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be written: {error.strerror or error}; name a folder with space and rights."
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _sweep(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):  # as mkdtemp names them
        with suppress(FileNotFoundError):  # of another writer, who has just finished with it
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)


def require_writable(*paths: str | Path | None) -> None:
    """Refuse outputs that cannot be written, before work starts that would be lost.

    Raises:
        InvalidInput: A file cannot be made beside one of the paths.
    """
    for path in paths:
        if path is not None:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=Path(path).parent) as file:
                    file.write(bytes(2**16))  # a full disk takes a name, but no bytes
            except OSError as error:
                raise InvalidInput(
                    f"{path} cannot be written: {error.strerror}; name a folder with space and rights."
                ) from None


def write_text(path: str | Path, text: str) -> None:
    """Write a text file at once, or not at all."""
    with publish(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write(folder: Path, kind: str, content: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """Complete the files of `folder`, already written, to an artifact; return its digest."""
    files = {file.name: file_digest(file) for file in sorted(folder.iterdir())}
    body = {"schema": SCHEMA, "kind": kind, "files": files, "content": content}
    body |= {"digest": digest(body), "origin": origin}
    (folder / "artifact.json").write_text(json.dumps(body, indent=1, allow_nan=False), encoding="utf-8")
    return str(body["digest"])


def read(path: str | Path, *kinds: str) -> dict[str, Any]:
    """Read `artifact.json` and check every byte the artifact claims.

    Args:
        kinds: What it may be.

    Returns:
        The artifact's body: `kind`, `content`, `digest`, `files`, `origin`.

    Raises:
        InvalidInput: There is none, it is of another kind, or it is damaged.
    """
    path = Path(path)
    try:
        body = json.loads((path / "artifact.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InvalidInput(
            f"{path} is no artifact: its artifact.json is missing or damaged; give a folder that a stage wrote."
        ) from None
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        raise InvalidInput(f"{path}/artifact.json is not of schema {SCHEMA}; write it again with this version.")
    if body.get("kind") not in kinds:
        needed = " or ".join(map(_article, kinds))
        raise InvalidInput(f"{path} is {_article(str(body.get('kind')))}, but {needed} is needed here.")
    claimed = {key: body.get(key) for key in ("schema", "kind", "files", "content")}
    if digest(claimed) != body.get("digest"):
        raise InvalidInput(f"{path}/artifact.json was changed after it was written; run its stage again.")
    for name, expected in body["files"].items():
        if not (path / name).is_file() or file_digest(path / name) != expected:
            raise InvalidInput(f"{path}/{name} is missing or damaged; run its stage again.")
    return body


def _article(kind: str) -> str:
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"
