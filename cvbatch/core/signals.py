"""SIGTERM and Ctrl-C: stop within a time limit, and kill all child processes.

Ray can be in any state when the signal arrives, also half started: it may leave processes behind,
block without end, or abort while the interpreter exits.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

_SHUTDOWN_LIMIT_S = 9.0  # from the signal to the exit of the process
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def install_signal_handlers() -> None:
    """Make the first SIGTERM or Ctrl-C raise KeyboardInterrupt; later ones are ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell ignores it for background jobs
            signal.signal(number, _interrupt)
    # Ray's processes start others. Orphans among them become children of this process.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, ignore further signals, and limit the time of the shutdown."""
    for ignored in _SIGNALS:
        signal.signal(ignored, signal.SIG_IGN)
    # A thread outside Python: it also ends a process that hangs in C++ code. Exit status 1.
    faulthandler.dump_traceback_later(_SHUTDOWN_LIMIT_S, exit=True)
    raise KeyboardInterrupt


def kill_children_and_exit(status: int) -> NoReturn:
    """Kill the remaining child processes, then exit without running cleanup handlers."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        while True:
            for child in _children():
                os.kill(child, signal.SIGKILL)  # safe: a pid is not reused before os.wait
            os.wait()  # its children are now children of this process
    except ChildProcessError:  # no child is left
        os._exit(status)


def _children() -> list[int]:
    pids: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            pids += map(int, path.read_text(encoding="ascii").split())
        except OSError:  # the thread has just ended
            continue
    return pids
