"""A call in a process of its own, which ends and takes TensorFlow's memory with it."""

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
    """A call that is under way in another process, without GPUs and without a terminal.

    The process does not outlive this one, however this one ends.
    """

    def __init__(
        self, call: Callable[..., T], *arguments: Any, initializer: Callable[[], None] | None = None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        # Not a pipe: TensorFlow's C++ parts write to the descriptor, and much.
        self._log = tempfile.NamedTemporaryFile(prefix="cvbatch-apart-")  # noqa: SIM115
        self._answer, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_answer,
            args=(theirs, self._log.name, initializer, call, arguments),
            daemon=True,  # ended when this process ends in order
        )
        # Ctrl-C goes to all processes of a terminal: it is for this one to hear.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that its death is the end of the pipe

    def result(self, what: str, remedy: str) -> T:
        """Return what the call returns, when it does; raise what it raises.

        what: the process does, and remedy: if it dies, for the user.

        Raises:
            ModelError: the process died.
        """
        try:
            value, error = self._answer.recv()
        except EOFError:
            self._log.seek(0)
            lines = self._log.read()[-2000:].decode(errors="replace").splitlines()
            last = f" (its last line: {lines[-1].strip()[:200]})" if lines else ""
            raise ModelError(
                f"the process that {what} died{last}, most likely for want of memory; {remedy}"
            ) from None
        finally:
            self._log.close()
            self._answer.close()
        if error is not None:
            raise error
        result: T = value
        return result


def _answer(
    pipe: Connection,
    log: str,
    initializer: Callable[[], None] | None,
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """Send what the call returns and None, or None and what it raises."""
    threading.Thread(target=exit_with_parent, daemon=True).start()
    _prepare(log)
    if initializer is not None:
        initializer()
    answer: tuple[Any, Exception | None]
    try:
        answer = call(*arguments), None
    except Exception as error:  # noqa: BLE001 - raised again by whoever asked
        answer = None, error
    pipe.send(answer)


def exit_with_parent() -> None:
    """End this process when the one that made it is gone, also when that was killed outright."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _prepare(log: str) -> None:
    """Keep TensorFlow's start-up chatter off the terminal, and the GPUs out of this process."""
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:  # whoever asked is ending
        os._exit(1)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep what C++ code writes to the descriptor off the terminal; exceptions pass."""
    sys.stderr.flush()
    terminal = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
