"""Process malformed files one by one in a process with limited memory, and print the outcomes.

A file that takes too long, or a crash, ends the process with a traceback.
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
MAX_REPORTED = 10


def print_outcomes(
    files: Iterable[tuple[str, File]],
    outcome: Callable[[File], object],
    limit_s: float,
    address_limit: int,
) -> None:
    """Print as JSON the outcome of each file, the slowest files, and the growth of memory."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (address_limit, address_limit))
    before = peak = _peak_bytes()
    outcomes, seconds, grown = {}, {}, {}
    for name, file in files:
        faulthandler.dump_traceback_later(limit_s, exit=True)
        print(name, file=sys.stderr, flush=True)
        started = time.process_time()
        outcomes[name] = outcome(file)
        seconds[name] = time.process_time() - started
        faulthandler.cancel_dump_traceback_later()
        now = _peak_bytes()
        if now > peak:
            grown[name], peak = now - peak, now
    slowest = sorted(seconds.items(), key=lambda pair: -pair[1])[:MAX_REPORTED]
    largest = sorted(grown.items(), key=lambda pair: -pair[1])[:MAX_REPORTED]
    json.dump(
        {"outcomes": outcomes, "grown": peak - before, "slowest": slowest, "largest": largest},
        sys.stdout,
    )


def run_module(module: str, *arguments: str) -> dict[str, Any]:
    """Run a module of this folder in a subprocess, which must succeed; return its JSON output."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.security.{module}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _peak_bytes() -> int:
    """Return the peak memory of this process so far, in bytes.

    `ru_maxrss` is unsuitable, because it starts at the memory of the parent process.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
