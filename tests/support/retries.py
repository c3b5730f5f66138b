"""Storages whose waits between retries take no time."""

from __future__ import annotations

from typing import Any

from cvbatch.core.types import RetryPolicy
from cvbatch.storage.store import Storage


def fast_storage(waits: list[float] | None = None, **limits: Any) -> Storage:
    """Return a storage that does not sleep between tries.

    Args:
        waits: Receives the seconds of each wait.
        limits: Other fields of RetryPolicy.
    """
    return Storage(RetryPolicy(sleep=([] if waits is None else waits).append, **limits))
