"""Decodes every hostile image in a process of its own, which says what became of them.

    python -m tests.hostile.decoding [reverse]

The address space is bounded, a file that takes too long ends the process with its traceback, and
so does a crash. On stdout: JSON with a line for each file, the slowest ones, and the peak memory.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import resource
import sys
import time
from pathlib import Path

from cvbatch.data.decode import Limits, decode
from cvbatch.types import Failure, InputKey, Tiling
from tests.hostile.images import PIXEL_LIMIT, hostile_files

FILE_LIMIT_S = 10.0
ADDRESS_LIMIT = 3 << 29  # of the whole process
KEYS = [
    InputKey(24, 20, "stretch"),
    InputKey(17, 32, "letterbox"),
    InputKey(16, 16, "crop"),
    InputKey(16, 16, "stretch", Tiling(400, 400, 8, 8)),
]


def outcome(data: bytes) -> str:
    """Return the kind of failure with its message, or what the pixels come to."""
    result = decode(data, KEYS, Limits(max_pixels=PIXEL_LIMIT))
    if isinstance(result, Failure):
        return f"{result.stage}/{result.kind}: {result.message}"
    digest = hashlib.sha256()
    for key in KEYS:
        digest.update(result.pixels[key].tobytes())
    return f"ok {result.width}x{result.height} {digest.hexdigest()[:16]}"


def peak_bytes() -> int:
    """Return the most memory this process has held so far.

    Not `ru_maxrss`: that begins with what the process held that started this one.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def main() -> None:
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_LIMIT, ADDRESS_LIMIT))
    files = list(hostile_files())
    if sys.argv[1:] == ["reverse"]:
        files.reverse()
    outcome(files[0][1])
    before = peak = peak_bytes()
    said, seconds, grown = {}, {}, {}
    for name, data in files:
        faulthandler.dump_traceback_later(FILE_LIMIT_S, exit=True)
        started = time.process_time()
        said[name] = outcome(data)
        seconds[name] = time.process_time() - started
        faulthandler.cancel_dump_traceback_later()
        now = peak_bytes()
        if now > peak:
            grown[name], peak = now - peak, now
    slowest = sorted(seconds.items(), key=lambda pair: -pair[1])[:10]
    largest = sorted(grown.items(), key=lambda pair: -pair[1])[:10]
    json.dump(
        {"said": said, "grown": peak - before, "slowest": slowest, "largest": largest}, sys.stdout
    )


if __name__ == "__main__":
    main()
