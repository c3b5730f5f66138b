"""Decode images in a child process with a timeout and a memory limit.

An image may crash its decoder, hang it or exhaust its memory. `IsolatedDecoder` decodes in a child
process: an image that ends the child becomes a `Failure`. `decode_with_alarm` is faster: it decodes
in this process, and the kernel ends this process if an image takes too long.
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
from cvbatch.core.time_limit import time_limit
from cvbatch.core.types import Decoded, Failure, InputKey
from cvbatch.images.decode import DecodeOne, Limits, decode

_START_LIMIT_S = 120.0  # of a child; it takes one second on a machine without overload
_ATTEMPTS = 2  # an earlier image, or the memory of another process, may have ended the child
_PR_SET_PDEATHSIG = 1
# Upper bound of the memory that decoding takes: 8 bytes per pixel of the largest TIFF, a strip of
# the same size, and 8-bit RGB with its conversion and its upright copy.
_BYTES_PER_PIXEL = 24
_COPIES_OF_FILE = 4
_COPIES_OF_TILES = 3  # the tiles, and two copies in the pipe
_SPARE_BYTES = 256 << 20


def decode_with_alarm(timeout_s: float) -> DecodeOne:
    """Return a `decode` that ends this process if an image takes longer than the timeout.

    Args:
        timeout_s: maximum seconds to decode one image.
    """

    def timed(data: bytes, keys: Sequence[InputKey], limits: Limits) -> Decoded | Failure:
        with time_limit(timeout_s):
            return decode(data, keys, limits)

    return timed


def decode_memory_bytes(keys: Sequence[InputKey], limits: Limits) -> int:
    """Return the memory, in bytes, that decoding one image within the limits may take.

    Args:
        keys: inputs of the networks.
        limits: maximum sizes of the file, the image and its tiles.

    Returns:
        At most half of the machine's memory, so that an image that needs more fails alone.
    """
    num_bytes = _SPARE_BYTES + limits.max_pixels * _BYTES_PER_PIXEL
    num_bytes += limits.max_bytes * _COPIES_OF_FILE
    if any(key.tiling for key in keys):
        num_bytes += limits.max_tile_bytes * _COPIES_OF_TILES
    return min(num_bytes, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


class IsolatedDecoder:
    """`decode` in a child process, which is replaced when it ends.

    A context manager: the child ends with the block. Results are those of `decode`, with two more
    kinds of failure: crashed (the image ended the child twice) and timeout (the child was killed).
    An image that takes more memory than `decode_memory_bytes` is too_large, or crashed if its
    decoder does not handle a failed allocation.

    Args:
        timeout_s: maximum seconds to decode one image.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._child: _Child | None = None

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, data: bytes, keys: Sequence[InputKey], limits: Limits) -> Decoded | Failure:
        """Decode one image; see `decode` for the arguments.

        Raises:
            CvbatchError: the child process does not start.
        """
        status = 0
        for _ in range(_ATTEMPTS):
            child = self._child = self._child or _Child(decode_memory_bytes(keys, limits))
            try:
                return child.decode(data, keys, limits, self._timeout_s)
            except TimeoutError:
                self._end()
                message = (
                    f"decoding took longer than {self._timeout_s:g} s; see run.image_timeout_s"
                )
                return Failure("decode", "timeout", message)
            except (EOFError, OSError):  # the child has closed its end of the pipe
                status = self._end()
        return Failure("decode", "crashed", f"the process that decoded it {_describe_exit(status)}")

    def _end(self) -> int:
        """End the child; return its exit status."""
        status = self._child.end() if self._child else 0
        self._child = None
        return status


class _Child:
    """A process that decodes the images that it receives through a pipe."""

    def __init__(self, memory_bytes: int) -> None:
        self._pipe, child_pipe = Pipe()
        code = f"""
from cvbatch.images import isolated_decode
isolated_decode.serve({child_pipe.fileno()}, {memory_bytes})
"""
        with child_pipe:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[child_pipe.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        try:
            self._receive(_START_LIMIT_S)
        except (EOFError, OSError):  # TimeoutError is an OSError
            status = self.end()
            raise CvbatchError(
                f"the process that decodes images did not start: it {_describe_exit(status)}; "
                "check that this machine has free memory and processes, then run again"
            ) from None

    def decode(
        self, data: bytes, keys: Sequence[InputKey], limits: Limits, timeout_s: float
    ) -> Decoded | Failure:
        """Decode an image in the child.

        Raises:
            TimeoutError: the child takes longer than `timeout_s`.
            EOFError, OSError: the child has ended.
        """
        self._pipe.send((data, keys, limits))
        result: Decoded | Failure = self._receive(timeout_s)
        return result

    def _receive(self, timeout_s: float) -> Any:
        if not self._pipe.poll(timeout_s):
            raise TimeoutError
        return self._pipe.recv()

    def end(self) -> int:
        """End the child; return its exit status, or the negative number of the signal."""
        self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout=1.0)  # the child exits when the pipe is closed
        self._process.kill()
        return self._process.wait()


def serve(descriptor: int, memory_bytes: int) -> None:
    """Main loop of the child: decode images from a pipe until it is closed.

    Args:
        descriptor: file descriptor of the pipe.
        memory_bytes: maximum memory that decoding may add to that of the started process.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the child ends with its parent
    cv2.setNumThreads(1)  # each thread reserves address space, which is limited below
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + memory_bytes, hard_limit))
    pipe = Connection(descriptor)
    pipe.send(None)  # reports that the child has started
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


def _describe_exit(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
