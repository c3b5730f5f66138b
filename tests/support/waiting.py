"""Wait for another process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")
LIMIT_S = 240.0  # generous, because the CPUs may be busy


def until(
    condition: Callable[[], T], description: str, limit_s: float = LIMIT_S, poll_s: float = 0.02
) -> T:
    """Return the first true value of `condition`; raise TimeoutError after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{description}: not within {limit_s:g} s")
        time.sleep(poll_s)
    return value


def has_ended(pid: int) -> bool:
    """Return whether a process has ended; it may have no parent that reads its exit status."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
