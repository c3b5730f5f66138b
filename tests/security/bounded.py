"""One process that takes hostile files one after the other, and what it says of them.

Its address space is bounded, a file that takes too long ends it with its traceback, and so does a
crash.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

File = TypeVar("File")
MOST_NAMED = 10


def print_outcomes(
    files: Iterable[tuple[str, File]],
    outcome: Callable[[File], object],
    limit_s: float,
    address_limit: int,
) -> None:
    """Print as JSON what each file came to, the slowest ones, and what memory grew by."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (address_limit, address_limit))
    before = peak = _peak_bytes()
    said, seconds, grown = {}, {}, {}
    for name, file in files:
        faulthandler.dump_traceback_later(limit_s, exit=True)
        print(name, file=sys.stderr, flush=True)
        started = time.process_time()
        said[name] = outcome(file)
        seconds[name] = time.process_time() - started
        faulthandler.cancel_dump_traceback_later()
        now = _peak_bytes()
        if now > peak:
            grown[name], peak = now - peak, now
    slowest = sorted(seconds.items(), key=lambda pair: -pair[1])[:MOST_NAMED]
    largest = sorted(grown.items(), key=lambda pair: -pair[1])[:MOST_NAMED]
    json.dump(
        {"said": said, "grown": peak - before, "slowest": slowest, "largest": largest}, sys.stdout
    )


def run_module(module: str, *words: str) -> dict[str, Any]:
    """Return what such a process said; it has to end well."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.security.{module}", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _peak_bytes() -> int:
    """Return the most memory this process has held so far.

    Not `ru_maxrss`: that begins with what the process held that started this one.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
