"""What a command says on stderr: its last line; for machines one JSON object a line, all of it."""

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
    """Return an id for a run: ids sort by the time they were made."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


class JsonLog(io.TextIOBase):
    """A text stream that stands for stderr; whoever prints lines there makes objects of them too.

    Every object has time, level, event, message and run, and what numbers belong to the event.
    """

    def __init__(self, stream: TextIO, run: str) -> None:
        self.run = run
        self._stream = stream
        self._unfinished = ""

    def write_event(self, event: str, message: str, level: str = "info", **values: Any) -> None:
        """Write one object."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        said = {"time": now, "level": level, "event": event, "message": message, "run": self.run}
        self._stream.write(json.dumps(_shown({**said, **values})) + "\n")
        self._stream.flush()

    def write(self, text: str) -> int:
        """Take what a library or a traceback prints: each line that is ended is an object."""
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in filter(str.strip, lines):
            self.write_event("printed", line)
        return len(text)

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def fileno(self) -> int:
        """Return the descriptor that is written to in the end."""
        return self._stream.fileno()


def _shown(value: Any) -> Any:
    """Return a value without secrets, and without numbers that JSON does not have."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _shown(one) for name, one in value.items()}
    return value


class _Records(logging.Handler):
    """Python's own log, warnings and worse, as events."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        level = _LEVELS.get(record.levelno, "warning")
        self._log.write_event("log", record.getMessage(), level, logger=record.name)


@contextmanager
def log_format(form: str, run: str) -> Iterator[None]:
    """Have stderr and Python's log in a form, "text" or "json", until the block ends."""
    if form == "text":
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        yield
        return
    before, log = sys.stderr, JsonLog(sys.stderr, run)
    handler = _Records(log)
    root = logging.getLogger()
    root.addHandler(handler)
    sys.stderr = log
    yield  # where an error passes, the interpreter is still to print it
    log.write("\n")  # ends what was not ended
    sys.stderr = before
    root.removeHandler(handler)


class CommandResult(NamedTuple):
    """The last line of a command, and its exit status."""

    line: str
    status: int


def write_last_line(ending: CommandResult) -> int:
    """Write the last line on stderr, in the log's form; return the status."""
    if isinstance(sys.stderr, JsonLog):
        level = "error" if ending.status else "info"
        sys.stderr.write_event("end", ending.line, level, status=ending.status)
    else:
        print(ending.line, file=sys.stderr, flush=True)  # noqa: T201
    return ending.status
