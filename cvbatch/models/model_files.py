"""The files that a job's models are named by, here: fetched from wherever they lie, and hashed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from cvbatch.core.errors import ModelError, StoreError
from cvbatch.storage.store import Storage


def fetch(storage: Storage, uri: str) -> Path:
    """Return a local path that holds a model file.

    Raises:
        ModelError: it cannot be had.
    """
    try:
        return storage.fetch(uri)
    except StoreError as error:
        raise ModelError(f"model file {uri} cannot be read: {error}") from None


def download(storage: Storage, uri: str, folder: Path, expected: str | None) -> Path:
    """Return a copy of a model file in a folder of this process alone, which nobody changes.

    expected: the SHA-256 that the copy must have, in hex; None: any.

    Raises:
        ModelError: the file cannot be had, or is another by now.
    """
    held = fetch(storage, uri)
    copy = folder / held.name
    try:
        shutil.copyfile(held, copy)
    except OSError as error:
        raise ModelError(f"model file {uri} cannot be copied: {error}; make room") from None
    if expected is not None:
        check(uri, sha256(copy), expected)
    return copy


def check(uri: str, found: str, expected: str | None) -> None:
    """Raise ModelError where a model file's SHA-256 is not the one expected."""
    if expected is not None and found != expected:
        raise ModelError(
            f"model file {uri} has the SHA-256 {found}, not {expected}: it is another file than "
            "the one pinned by sha256 in the job file, or it changed while the job began; name the "
            "right one, or pin what is there now"
        )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
