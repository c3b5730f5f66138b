"""Log records as JSON lines on stderr (`--log json`), and the last line of every command.

C++ code of Ray and TensorFlow, and child processes, write to the file descriptors 1 and 2. With
`--log json` these are a pipe, whose lines become events.
"""

from __future__ import annotations

import atexit
import io
import json
import logging
import math
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple, TextIO

from cvbatch.core.redaction import redact

_LEVELS = {logging.WARNING: "warning", logging.ERROR: "error", logging.CRITICAL: "error"}


def new_run_id() -> str:
    """Return a unique id for a run; ids sort by creation time (UTC, seconds)."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


class _Lines(io.TextIOBase):
    """A text stream in front of another: a function gets each complete line that is not blank."""

    def __init__(self, stream: TextIO, on_line: Callable[[str], None]) -> None:
        self._stream, self._on_line = stream, on_line
        self._unfinished_line = ""

    def write(self, text: str) -> int:
        """Buffer text; call the function for each complete line."""
        *lines, self._unfinished_line = (self._unfinished_line + text).split("\n")
        for line in filter(str.strip, lines):
            self._on_line(line)
        return len(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    def flush(self) -> None:
        """Flush the underlying stream."""
        self._stream.flush()

    def fileno(self) -> int:
        """Return the file descriptor of the underlying stream."""
        return self._stream.fileno()


class JsonLog(_Lines):
    """A text stream that replaces stderr and writes one JSON object per line.

    Every object has the keys time, level, event, message and run, and the values of its event.
    Lines printed by other code become objects with the event "printed".
    """

    def __init__(self, stream: TextIO, run: str) -> None:
        super().__init__(stream, self.write_line)
        self.run = run
        self._lock = threading.Lock()
        self._pipe: _CapturedDescriptors | None = None

    def write_event(self, event: str, message: str, level: str = "info", **values: Any) -> None:
        """Write one object."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"time": now, "level": level, "event": event, "message": message, "run": self.run}
        line = json.dumps(_json_safe({**record, **values})) + "\n"
        with self._lock:
            self._stream.write(line)
            self._stream.flush()

    def write_line(self, line: str) -> None:
        """Write a line that other code has printed."""
        self.write_event("printed", line)

    def capture_descriptors(self) -> None:
        """Write what is written to the descriptors 1 and 2 as events, until `finish`."""
        self._pipe = _CapturedDescriptors(self.write_line)

    def finish(self) -> None:
        """Write all lines printed so far; later output to the descriptors 1 and 2 is discarded."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        self.write("\n")  # completes an unfinished line


class _CapturedDescriptors:
    """The descriptors 1 and 2 as a pipe, which a thread reads line by line."""

    _END = b"\0end of the output\n"

    def __init__(self, on_line: Callable[[str], None]) -> None:
        reading, writing = os.pipe()
        for descriptor in (1, 2):
            os.dup2(writing, descriptor)
        os.close(writing)
        self._thread = threading.Thread(target=self._read, args=(reading, on_line), daemon=True)
        self._thread.start()
        atexit.register(self.close)  # for a process that ends with a traceback

    def _read(self, reading: int, on_line: Callable[[str], None]) -> None:
        with os.fdopen(reading, "rb") as pipe:
            for line in pipe:
                text, is_end, _ = line.partition(self._END)
                for part in filter(str.strip, text.decode(errors="replace").splitlines()):
                    on_line(part)
                if is_end:
                    return

    def close(self) -> None:
        """Read the pipe to its end; child processes may still have it open."""
        os.write(2, self._END)
        self._thread.join(1.0)
        null = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
        atexit.unregister(self.close)


def _json_safe(value: Any) -> Any:
    """Return a value with secrets redacted, and NaN and infinity replaced by None."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _json_safe(item) for name, item in value.items()}
    return value


class _EventHandler(logging.Handler):
    """Writes warnings and errors of Python's logging as events."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        level = _LEVELS.get(record.levelno, "warning")
        self._log.write_event("log", record.getMessage(), level, logger=record.name)


@contextmanager
def log_format(form: str, run: str) -> Iterator[None]:
    """Set the format of stderr and of Python's logging until the block ends.

    Args:
        form: "text" or "json".
        run: id of the run, in every JSON object.
    """
    if form == "text":
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        yield
        return
    streams = sys.stdout, sys.stderr
    is_captured = [_descriptor(stream) for stream in streams] == [1, 2]
    stdout, stderr = map(_duplicate, streams) if is_captured else streams
    log = JsonLog(stderr, run)
    handler = _EventHandler(log)
    root = logging.getLogger()
    root.addHandler(handler)
    sys.stdout, sys.stderr = _JsonOnly(stdout, log), log
    if is_captured:
        log.capture_descriptors()
    yield  # not in try/finally: the interpreter must still print a traceback as JSON
    log.finish()
    sys.stdout, sys.stderr = streams
    root.removeHandler(handler)


class _JsonOnly(_Lines):
    """A text stream that replaces stdout: lines that are no JSON are written to the log."""

    def __init__(self, stream: TextIO, log: JsonLog) -> None:
        super().__init__(stream, self._write_line)
        self._log = log

    def _write_line(self, line: str) -> None:
        try:
            is_json = isinstance(json.loads(line), dict | list)
        except ValueError:
            is_json = False
        if is_json:
            self._stream.write(f"{line}\n")
        else:
            self._log.write_line(line)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # a stream in memory, or closed
        return None


def _duplicate(stream: TextIO) -> TextIO:
    """Return a stream that writes where a stream with a file descriptor writes now."""
    stream.flush()
    return os.fdopen(os.dup(stream.fileno()), "w", encoding="utf-8", errors="backslashreplace")


class CommandResult(NamedTuple):
    """The last line of a command on stderr, and its exit status."""

    line: str
    status: int


def write_last_line(result: CommandResult) -> int:
    """Write the last line on stderr, in the format of the log; return the exit status."""
    if isinstance(sys.stderr, JsonLog):
        level = "error" if result.status else "info"
        sys.stderr.finish()
        sys.stderr.write_event("end", result.line, level, status=result.status)
    else:
        print(result.line, file=sys.stderr, flush=True)  # noqa: T201
    return result.status
