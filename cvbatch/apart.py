"""A call in a process of its own, which ends and takes TensorFlow's memory with it."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

from cvbatch.errors import ModelError

T = TypeVar("T")


class Apart(Generic[T]):
    """A call that is under way in another process, without GPUs and without a terminal."""

    def __init__(self, call: Callable[..., T], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        # Not a pipe: TensorFlow's C++ parts write to the descriptor, and much.
        self._log = tempfile.NamedTemporaryFile(prefix="cvbatch-apart-")  # noqa: SIM115
        pool = ProcessPoolExecutor(
            1, mp_context=context, initializer=_prepare, initargs=(self._log.name,)
        )
        self._future = pool.submit(call, *arguments)
        pool.shutdown(wait=False)

    def result(self, what: str, remedy: str) -> T:
        """Return what the call returns, when it does; raise what it raises.

        what: the process does, and remedy: if it dies, for the user.

        Raises:
            ModelError: the process died.
        """
        try:
            return self._future.result()
        except BrokenProcessPool:
            self._log.seek(0)
            lines = self._log.read()[-2000:].decode(errors="replace").splitlines()
            last = f" (its last line: {lines[-1].strip()[:200]})" if lines else ""
            raise ModelError(
                f"the process that {what} died{last}, most likely for want of memory; {remedy}"
            ) from None
        finally:
            self._log.close()


def _prepare(log: str) -> None:
    """Keep TensorFlow's start-up chatter off the terminal, and the GPUs out of this process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
