"""Run one call in a spawned process, whose memory is released when it ends.

TensorFlow keeps the memory that it has once allocated, so cvbatch uses it in a process that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from cvbatch.core.errors import ModelError

T = TypeVar("T")


class ChildProcess(Generic[T]):
    """A call that runs in another process, without GPUs and without a terminal.

    The process ends with this one, also when this one is killed.

    Args:
        call: the function; it, its arguments and its result must be picklable.
        arguments: positional arguments of `call`.
        initializer: called in the process before `call`.
    """

    def __init__(
        self, call: Callable[..., T], *arguments: Any, initializer: Callable[[], None] | None = None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        # A pipe could fill up: TensorFlow's C++ code writes a lot to the file descriptor.
        self._log = tempfile.NamedTemporaryFile(prefix="cvbatch-child-")  # noqa: SIM115
        self._connection, child_end = context.Pipe(duplex=False)
        process = context.Process(
            target=_run_call,
            args=(child_end, self._log.name, initializer, call, arguments),
            daemon=True,  # terminated when this process exits normally
        )
        # Ctrl-C reaches all processes of a terminal; only this one handles it.
        signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
        child_end.close()  # so that the death of the process closes the pipe

    def result(self, action: str, remedy: str) -> T:
        """Wait for the call and return its result; raise the exception that it raised.

        Args:
            action: completes "the process that ..." in the error message.
            remedy: what the user can do if the process dies.

        Raises:
            ModelError: the process died.
        """
        try:
            value, error = self._connection.recv()
        except EOFError:
            self._log.seek(0)
            lines = self._log.read()[-2000:].decode(errors="replace").splitlines()
            last = f" (its last line: {lines[-1].strip()[:200]})" if lines else ""
            raise ModelError(
                f"the process that {action} died{last}, probably because memory ran out; {remedy}"
            ) from None
        finally:
            self._log.close()
            self._connection.close()
        if error is not None:
            raise error
        result: T = value
        return result


def _run_call(
    connection: Connection,
    log: str,
    initializer: Callable[[], None] | None,
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """Send (result, None), or (None, exception)."""
    threading.Thread(target=exit_with_parent, daemon=True).start()
    _isolate(log)
    if initializer is not None:
        initializer()
    outcome: tuple[Any, Exception | None]
    try:
        outcome = call(*arguments), None
    except Exception as error:  # noqa: BLE001 - the parent raises it again
        outcome = None, error
    connection.send(outcome)


def exit_with_parent() -> None:
    """Wait until the parent process has ended, also by SIGKILL; then end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _isolate(log: str) -> None:
    """Redirect stdout and stderr to the log file, and hide the GPUs."""
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:  # the parent process is ending
        os._exit(1)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard what is written to file descriptor 2, also by C++ code; exceptions pass."""
    sys.stderr.flush()
    original = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(null)
