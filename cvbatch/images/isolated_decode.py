"""Decodes images that may crash, hang or swallow the process that decodes them.

Two ways. `on_a_timer` decodes in this process, and an image that takes too long ends it: the kernel
does so, whatever the decoder holds. `IsolatedDecoder` decodes in a child process, and of an image
that ends the child a `Failure` is left: slower, and nothing but the image is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import cv2

from cvbatch.core.errors import CvbatchError
from cvbatch.core.types import Decoded, Failure, InputKey
from cvbatch.images.decode import DecodeOne, Limits, decode

_START_LIMIT_S = 120.0  # of a child: on a machine that is not overrun it takes one second
_TRIES = 2  # a child may have died of an image before this one, or of another process' hunger
_PR_SET_PDEATHSIG = 1
# What decoding takes at most, generously: Pillow's 4 bytes a pixel and those of its conversion,
# the array, and its turned copy.
_BYTES_PER_PIXEL = 16
_COPIES_OF_FILE = 4
_COPIES_OF_TILES = 3  # themselves, and twice on their way through the pipe
_SPARE_BYTES = 256 << 20


def decode_with_alarm(timeout_s: float) -> DecodeOne:
    """Return `decode` as a call that kills this process if it takes longer than `timeout_s`.

    By SIGALRM, left at its default action: no thread is needed and none can be kept from it. A
    call costs 3 µs more.
    """

    def timed(data: bytes, keys: Sequence[InputKey], limits: Limits) -> Decoded | Failure:
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        try:
            return decode(data, keys, limits)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return timed


def decode_memory_bytes(keys: Sequence[InputKey], limits: Limits) -> int:
    """Return the memory that decoding an image within the limits may take, beside the code.

    Never more than half of the machine's: an image that wants more than there is must fail alone.
    """
    wanted = _SPARE_BYTES + limits.max_pixels * _BYTES_PER_PIXEL
    wanted += limits.max_bytes * _COPIES_OF_FILE
    if any(key.tiling for key in keys):
        wanted += limits.max_tile_bytes * _COPIES_OF_TILES
    return min(wanted, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


class IsolatedDecoder:
    """`decode` in a child process that may die, and is then replaced.

    Pixels and failures are those of `decode`. Further kinds: crashed (the child died of the image,
    twice), timeout (it was killed). An image that takes more than `decoding_bytes` of memory is
    too_large, or crashed where its decoder does not bear being refused. Ends with its block.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._child: _Child | None = None

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, data: bytes, keys: Sequence[InputKey], limits: Limits) -> Decoded | Failure:
        """Return what `decode` returns, or what became of the child.

        Raises:
            CvbatchError: no child comes up.
        """
        status = 0
        for _ in range(_TRIES):
            child = self._child = self._child or _Child(decode_memory_bytes(keys, limits))
            try:
                return child.ask(data, keys, limits, self._timeout_s)
            except TimeoutError:
                self._end()
                message = (
                    f"decoding took longer than {self._timeout_s:g} s; see run.image_timeout_s"
                )
                return Failure("decode", "timeout", message)
            except (EOFError, OSError):  # the pipe's other end is gone
                status = self._end()
        return Failure("decode", "crashed", f"the process that decoded it {_death(status)}")

    def _end(self) -> int:
        """End the child; return its exit status."""
        status = self._child.end() if self._child else 0
        self._child = None
        return status


class _Child:
    """A process that decodes what it is sent, until it dies."""

    def __init__(self, memory_bytes: int) -> None:
        self._pipe, theirs = Pipe()
        code = f"""
from cvbatch.images import isolated_decode
isolated_decode.serve({theirs.fileno()}, {memory_bytes})
"""
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        try:
            self._wait(_START_LIMIT_S)
        except (EOFError, OSError):  # a TimeoutError is one
            status = self.end()
            raise CvbatchError(
                f"the process that decodes images one by one did not come up: it {_death(status)}; "
                "look whether this machine has memory and processes to spare, then run again"
            ) from None

    def ask(
        self, data: bytes, keys: Sequence[InputKey], limits: Limits, timeout_s: float
    ) -> Decoded | Failure:
        """Return what the child makes of an image.

        Raises:
            TimeoutError: it has none in time.
            EOFError, OSError: it died.
        """
        self._pipe.send((data, keys, limits))
        answer: Decoded | Failure = self._wait(timeout_s)
        return answer

    def _wait(self, timeout_s: float) -> Any:
        if not self._pipe.poll(timeout_s):
            raise TimeoutError
        return self._pipe.recv()

    def end(self) -> int:
        """Kill it if it lives; return its exit status, negative the signal that ended it."""
        self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=1.0)  # it leaves by itself: the pipe has ended
        self._process.kill()
        return self._process.wait()


def serve(descriptor: int, memory_bytes: int) -> None:
    """Be the child: answer for every image that comes through the pipe, until the pipe ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # if its owner dies, at once
    cv2.setNumThreads(1)  # each thread would reserve address space
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + memory_bytes, most))
    pipe = Connection(descriptor)
    pipe.send(None)  # it is there
    while True:
        try:
            data, keys, limits = pipe.recv()
        except EOFError:
            return
        pipe.send(_decode_within_memory(data, keys, limits))


def _decode_within_memory(
    data: bytes, keys: Sequence[InputKey], limits: Limits
) -> Decoded | Failure:
    try:
        return decode(data, keys, limits)
    except MemoryError:
        pass
    except cv2.error as error:
        if error.code != cv2.Error.StsNoMem:
            raise
    return Failure("decode", "too_large", "decoding it takes more memory than one image may have")


def _death(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
