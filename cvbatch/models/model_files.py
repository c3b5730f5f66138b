"""Fetch the model files of a job and check their SHA-256."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from cvbatch.core.errors import ModelError, StoreError
from cvbatch.storage.store import Storage


def fetch(storage: Storage, uri: str) -> Path:
    """Return the path of a local copy of a model file.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        return storage.fetch(uri)
    except StoreError as error:
        raise ModelError(f"model file {uri} cannot be read: {error}") from None


def download(storage: Storage, uri: str, folder: Path, expected: str | None) -> Path:
    """Copy a model file into a private folder, where no other process can change it.

    Args:
        uri: model file.
        folder: private to this process.
        expected: SHA-256 of the file, in hex; None: any.

    Raises:
        ModelError: the file cannot be read or copied, or has another SHA-256.
    """
    source = fetch(storage, uri)
    copy = folder / source.name
    try:
        shutil.copyfile(source, copy)
    except OSError as error:
        raise ModelError(f"model file {uri} cannot be copied: {error}; free disk space") from None
    if expected is not None:
        check(uri, sha256(copy), expected)
    return copy


def check(uri: str, actual: str, expected: str | None) -> None:
    """Raise ModelError if the SHA-256 of a model file is not the expected one; None: any."""
    if expected is not None and actual != expected:
        raise ModelError(
            f"model file {uri} has the SHA-256 {actual}, not {expected}: it is not the file pinned "
            "by sha256 in the job file, or it changed while the job started; correct model or "
            "sha256"
        )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
