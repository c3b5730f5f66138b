"""Run a command on a pseudo terminal and return what a person sees."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Sequence

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_on_terminal(command: Sequence[str], width: int = 120) -> tuple[int, list[str]]:
    """Return the exit status and the lines on stderr, also those that were overwritten."""
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(width), "TERM": "xterm"}
    with subprocess.Popen(command, stderr=child, env=environment) as process:
        os.close(child)
        pieces = []
        try:
            while piece := os.read(parent, 1 << 16):
                pieces.append(piece)
        except OSError:  # the terminal has no other side any more
            os.close(parent)
    text = _CONTROL.sub("", b"".join(pieces).decode())
    return process.returncode, re.split(r"[\r\n]+", text)
