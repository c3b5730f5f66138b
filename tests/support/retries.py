"""The retry policy of the test process, for the time of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cvbatch.core.types import RetryPolicy
from cvbatch.storage import retry


@contextmanager
def retry_policy(**limits: Any) -> Iterator[None]:
    """Let all requests of this process follow a policy with these limits."""
    before = retry.retry_policy()
    retry.set_retry_policy(RetryPolicy(**limits))
    try:
        yield
    finally:
        retry.set_retry_policy(before)


def change_retry_policy(**limits: Any) -> None:
    """Change limits of the policy; inside of `retry_policy`, which restores it."""
    retry.set_retry_policy(replace(retry.retry_policy(), **limits))
