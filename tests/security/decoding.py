"""Decode every malformed image in one process, and print the outcomes.

    python -m tests.security.decoding [reverse]

The output on stdout is what `bounded.print_outcomes` prints.
"""

from __future__ import annotations

import hashlib
import sys

from cvbatch.core.types import Failure, InputKey, Tiling
from cvbatch.images.decode import Limits, decode
from tests.security.bounded import print_outcomes
from tests.security.images import PIXEL_LIMIT, malformed_files

FILE_LIMIT_S = 10.0
ADDRESS_LIMIT = 3 << 29  # of the whole process
KEYS = [
    InputKey(24, 20, "stretch"),
    InputKey(17, 32, "letterbox"),
    InputKey(16, 16, "crop"),
    InputKey(16, 16, "stretch", Tiling(400, 400, 8, 8)),
]


def outcome(data: bytes) -> str:
    """Return the kind of failure with its message, or the size and a hash of the pixels."""
    result = decode(data, KEYS, Limits(max_pixels=PIXEL_LIMIT))
    if isinstance(result, Failure):
        return f"{result.stage}/{result.kind}: {result.message}"
    digest = hashlib.sha256()
    for key in KEYS:
        digest.update(result.pixels[key].tobytes())
    return f"ok {result.width}x{result.height} {digest.hexdigest()[:16]}"


def main() -> None:
    files = list(malformed_files())
    if sys.argv[1:] == ["reverse"]:
        files.reverse()
    outcome(files[0][1])  # memory that decoders allocate once does not count as growth
    print_outcomes(files, outcome, FILE_LIMIT_S, ADDRESS_LIMIT)


if __name__ == "__main__":
    main()
