"""SIGTERM and Ctrl-C: stop within a time limit, or at once after the second; kill all children.

Ray can be in any state when the signal arrives, also half started: it may leave processes behind,
block without end, or abort while the interpreter exits.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NoReturn

_SHUTDOWN_LIMIT_S = 9.0  # from the first signal to the exit of the process
# A parent such as `uv run` may forward the signal that the terminal has sent to both.
_SAME_KEY_PRESS_S = 0.3
_PRINT_LIMIT_S = 0.5
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_exit_lock = threading.Lock()  # of the thread that ends the process


@cache  # the thread is started once in a process
def install_signal_handlers(
    print_hint: Callable[[], object], print_last_line: Callable[[], object]
) -> None:
    """Make the first SIGTERM or Ctrl-C raise KeyboardInterrupt, and the second end the process.

    Args:
        print_hint: called in a thread after the first signal.
        print_last_line: called in a thread before the process ends at once.
    """
    received, written = os.pipe()
    os.set_blocking(written, False)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for later in _SIGNALS:  # the thread receives them
            signal.signal(later, lambda *_: None)
        signal.set_wakeup_fd(written)  # an event loop may have replaced it
        raise KeyboardInterrupt

    # A shell ignores SIGINT for background jobs.
    handled = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, interrupt)
    if handled:
        # Python calls `interrupt` between two instructions of the main thread, which may hang in
        # C++ code. The file descriptor is written at once.
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        arguments = received, print_hint, print_last_line
        threading.Thread(target=_await_signals, args=arguments, daemon=True).start()
    # Ray's processes start others. Orphans among them become children of this process.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _await_signals(
    received: int, print_hint: Callable[[], object], print_last_line: Callable[[], object]
) -> None:
    """End the process at the second signal, or when the time after the first one is over."""
    _receive(received, None)
    first = time.monotonic()
    # A thread outside Python: it also ends a process that never releases the interpreter's lock.
    null = Path(os.devnull).open("wb")  # noqa: SIM115 - for a traceback that nobody reads
    faulthandler.dump_traceback_later(_SHUTDOWN_LIMIT_S + 2 * _PRINT_LIMIT_S, exit=True, file=null)
    threading.Thread(target=print_hint, daemon=True).start()
    while time.monotonic() - first < _SAME_KEY_PRESS_S:
        _receive(received, first + _SHUTDOWN_LIMIT_S)
    kill_children_and_exit(print_last_line)


def _receive(received: int, deadline: float | None) -> None:
    """Wait for one of `_SIGNALS`; other signals with a handler in Python are received as well."""
    numbers: set[int] = set()
    while not numbers.intersection(_SIGNALS):
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([received], [], [], timeout)[0]:
            return
        numbers.update(os.read(received, 1 << 10))


def kill_children_and_exit(print_last_line: Callable[[], object]) -> NoReturn:
    """Kill the remaining child processes; exit with status 1, without running cleanup handlers."""
    _exit_lock.acquire()  # never released: another thread that gets here waits for the end
    # In a thread, because the main thread may hang while it writes to the terminal.
    printer = threading.Thread(target=print_last_line, daemon=True)
    printer.start()
    printer.join(_PRINT_LIMIT_S)
    try:
        while True:
            for child in _children():
                with suppress(ProcessLookupError):  # another thread has waited for it
                    os.kill(child, signal.SIGKILL)
            os.wait()  # its children are now children of this process
    except ChildProcessError:  # no child is left
        os._exit(1)


def _children() -> list[int]:
    pids: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            pids += map(int, path.read_text(encoding="ascii").split())
        except OSError:  # the thread has just ended
            continue
    return pids
