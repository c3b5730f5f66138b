"""The files that a job's models are named by, here: fetched from wherever they lie, and hashed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cvbatch.data import store
from cvbatch.errors import ModelError, StoreError


def fetch(uri: str) -> Path:
    """Return a local path that holds a model file.

    Raises:
        ModelError: it cannot be had.
    """
    try:
        return store.fetch(uri)
    except StoreError as error:
        raise ModelError(f"model file {uri} cannot be read: {error}") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
