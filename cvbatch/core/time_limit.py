"""A time limit for code that may never return to Python, such as a parser of untrusted files."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def time_limit(seconds: float, action: str = "") -> Iterator[None]:
    """End this process if the block takes longer.

    SIGALRM with its default action needs no thread, and C code cannot block it by holding the
    interpreter's lock. The overhead is a few µs. The block must run in a process that may end: a
    child of the job.

    Args:
        seconds: maximum duration of the block.
        action: written to stderr first, so that the parent's message about the process names it;
            "": nothing is written.
    """
    if action:
        print(f"{action}, at most {seconds:g} s", file=sys.stderr, flush=True)  # noqa: T201
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
