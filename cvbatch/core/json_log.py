"""Log records as JSON lines on stderr (`--log json`), and the last line of every command."""

from __future__ import annotations

import io
import json
import logging
import math
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple, TextIO

from cvbatch.core.redaction import redact

_LEVELS = {logging.WARNING: "warning", logging.ERROR: "error", logging.CRITICAL: "error"}


def new_run_id() -> str:
    """Return a unique id for a run; ids sort by creation time (UTC, seconds)."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


class JsonLog(io.TextIOBase):
    """A text stream that replaces stderr and writes one JSON object per line.

    Every object has the keys time, level, event, message and run, and the values of its event.
    Lines printed by other code become objects with the event "printed".
    """

    def __init__(self, stream: TextIO, run: str) -> None:
        self.run = run
        self._stream = stream
        self._unfinished_line = ""

    def write_event(self, event: str, message: str, level: str = "info", **values: Any) -> None:
        """Write one object."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"time": now, "level": level, "event": event, "message": message, "run": self.run}
        self._stream.write(json.dumps(_json_safe({**record, **values})) + "\n")
        self._stream.flush()

    def write(self, text: str) -> int:
        """Buffer printed text; write an object for each complete line."""
        *lines, self._unfinished_line = (self._unfinished_line + text).split("\n")
        for line in filter(str.strip, lines):
            self.write_event("printed", line)
        return len(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor of the underlying stream."""
        return self._stream.fileno()


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
    stderr, log = sys.stderr, JsonLog(sys.stderr, run)
    handler = _EventHandler(log)
    root = logging.getLogger()
    root.addHandler(handler)
    sys.stderr = log
    yield  # not in try/finally: the interpreter must still print a traceback as JSON
    log.write("\n")  # completes an unfinished line
    sys.stderr = stderr
    root.removeHandler(handler)


class CommandResult(NamedTuple):
    """The last line of a command on stderr, and its exit status."""

    line: str
    status: int


def write_last_line(result: CommandResult) -> int:
    """Write the last line on stderr, in the format of the log; return the exit status."""
    if isinstance(sys.stderr, JsonLog):
        level = "error" if result.status else "info"
        sys.stderr.write_event("end", result.line, level, status=result.status)
    else:
        print(result.line, file=sys.stderr, flush=True)  # noqa: T201
    return result.status
