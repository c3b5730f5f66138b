"""Ends a command that is told to stop: in order, in time, and with all the processes it started.

Ray may be anywhere when the signal comes, half started too: it may then leave processes behind,
wait for ever, or abort while the interpreter ends.
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

LIMIT_S = 9.0  # from a signal to the end
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def install_signal_handlers() -> None:
    """Have SIGTERM and Ctrl-C raise KeyboardInterrupt, once."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as Ctrl-C is for a job in the background
            signal.signal(number, _interrupt)
    # Ray's processes start others: those whose parents have ended stay ours.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Stop in order, undisturbed by further signals; if that takes too long, at once."""
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    # A thread outside Python, which also ends a process that hangs in C++. Exit status 1.
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    raise KeyboardInterrupt


def kill_children_and_exit(status: int) -> NoReturn:
    """End this process now, and those it started that outlived the orderly end."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        while True:
            for child in _children():
                os.kill(child, signal.SIGKILL)  # ours to bury: the number is still its own
            os.wait()  # what it started is now our child
    except ChildProcessError:  # none is left
        os._exit(status)


def _children() -> list[int]:
    found: list[int] = []
    for told in Path("/proc/self/task").glob("*/children"):
        try:
            found += map(int, told.read_text(encoding="ascii").split())
        except OSError:  # a thread that has just ended
            continue
    return found
