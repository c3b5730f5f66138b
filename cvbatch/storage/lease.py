"""Lease on a sink: one writer at a time, renewed by heartbeats.

The lease file names the run that writes into the sink and counts its heartbeats. A second run
watches whether the count grows, so that no clocks of two machines are compared. Without the lease
two predictions would compute the same bytes twice, and two trainings would mix their checkpoints.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cvbatch.core.errors import AccessDeniedError, CvbatchError, SinkError, StoreError
from cvbatch.core.types import Log
from cvbatch.storage import store
from cvbatch.storage.conditional_write import ConditionalFile, Content, conditional_file
from cvbatch.storage.store import Storage

log = logging.getLogger(__name__)

LEASE_PATH = "_cvbatch/lease.json"
HEARTBEAT_S = 5.0
LEASE_TIMEOUT_S = 20.0  # without a heartbeat; then the run counts as dead
_POLL_S = 0.5
_MAX_ATTEMPTS = 5
_JOIN_TIMEOUT_S = 2.0  # for a heartbeat in progress when the run ends


class Clock:
    """Monotonic time and waiting. Tests pass a simulated clock."""

    def now(self) -> float:
        """Return the seconds of a monotonic clock."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block for a number of seconds."""
        time.sleep(seconds)

    def repeat(self, action: Callable[[], None], interval_s: float) -> Callable[[], None]:
        """Call `action` every `interval_s` seconds in a thread; return a function that ends it."""
        is_ended = threading.Event()

        def run() -> None:
            while not is_ended.wait(interval_s):
                action()

        thread = threading.Thread(target=run, name="heartbeat", daemon=True)
        thread.start()

        def end() -> None:
            is_ended.set()
            thread.join(_JOIN_TIMEOUT_S)

        return end


CLOCK = Clock()


class Holder(NamedTuple):
    """The run that has a lease. The field names are the keys of the lease file."""

    host: str
    machine: str  # one boot of one machine and one PID namespace; "" if unknown
    pid: int
    pid_started: str  # distinguishes the process from a later one with the same pid
    started: str  # UTC
    token: str
    beat: int = 0  # heartbeats so far

    @classmethod
    def this_process(cls) -> Holder:
        """Return this process as the holder of a new lease."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        pid_started = _process_start_time(pid) or ""
        token = secrets.token_hex(8)
        return cls(socket.gethostname(), _machine_id(), pid, pid_started, now, token)

    @classmethod
    def parse(cls, content: Content) -> Holder:
        """Return the holder that a lease file names; an unknown one if the file is damaged."""
        try:
            return cls(**json.loads(content.data))
        except (ValueError, TypeError):
            return cls("an unknown host", "", 0, "", "an unknown time", "")

    def to_json(self) -> bytes:
        """Return the content of the lease file."""
        return json.dumps(self._asdict()).encode()

    @property
    def is_known_dead(self) -> bool:
        """Whether this was a process of this machine that has ended."""
        is_local = self.machine != "" and self.machine == _machine_id()
        return is_local and _process_start_time(self.pid) != self.pid_started

    def __str__(self) -> str:
        return f"a run on {self.host} (process {self.pid}), started {self.started}"


def _machine_id() -> str:
    """Return an id of this boot of this machine and of the PID namespace of this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _process_start_time(pid: int) -> str | None:
    """Return when a process of this machine started, in ticks since boot; None if it has ended."""
    try:
        state, *fields = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def current_holder(storage: Storage, sink_uri: str) -> Holder | None:
    """Return the run that has the lease of a sink, None if there is none or it is known dead."""
    file = _lease_file(storage, sink_uri)
    content = file.read() if file else None
    holder = Holder.parse(content) if content else None
    return None if holder is None or holder.is_known_dead else holder


def check_token(storage: Storage, sink_uri: str, token: str) -> None:
    """Check, in another process than the one that has the lease, that its run still has it.

    Args:
        storage: Reads the lease file.
        token: `Lease.token` of the run; "" if the store has no leases.

    Raises:
        CvbatchError: Another run has taken over the sink.
    """
    file = _lease_file(storage, sink_uri) if token else None
    if file is None:
        return
    content = file.read()
    if content is None or Holder.parse(content).token != token:
        raise _lost(sink_uri, content)


def _lease_file(storage: Storage, sink_uri: str) -> ConditionalFile | None:
    return conditional_file(storage, store.join(store.absolute(sink_uri), LEASE_PATH))


def _lost(sink_uri: str, content: Content | None) -> CvbatchError:
    holder = Holder.parse(content) if content else "another run, which has ended since"
    return CvbatchError(
        f"the sink {sink_uri} was taken over by {holder}, because this run sent no heartbeat for "
        f"{LEASE_TIMEOUT_S:g} s; wait until that run ends"
    )


class Lease:
    """The right to write into a sink, from `acquire` to the end of the `with` block.

    Args:
        storage: Reads and writes the lease file.
        report: Receives a line if the run has to wait, or if the storage has no leases.
    """

    def __init__(self, storage: Storage, sink_uri: str, report: Log, clock: Clock = CLOCK) -> None:
        self._file = _lease_file(storage, sink_uri)
        self._sink_uri, self._report, self._clock = sink_uri, report, clock
        self._abandoned: Content | None = None  # a lease file whose run counts as dead
        self._holder: Holder | None = None  # this run, once it has the lease
        self._error: CvbatchError | None = None  # set when the lease is lost
        self._end_heartbeats: Callable[[], None] = lambda: None

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._end_heartbeats()
        if self._holder and not self._error and not isinstance(error, StoreError):
            self._release(self._holder)  # no further request to a storage that failed

    @property
    def token(self) -> str:
        """Identifies this run in the lease file; "" before `acquire` or if there are no leases."""
        return self._holder.token if self._holder else ""

    def wait_until_free(self) -> Content | None:
        """Return the lease file of a dead run, None if there is none. Nothing is written.

        Raises:
            SinkError: Another active run has the lease, or the sink cannot be read.
        """
        try:
            content = self._file.read() if self._file else None
        except AccessDeniedError as error:
            raise SinkError(f"the sink cannot be used: {error}") from None
        if content is None or content == self._abandoned:
            return content
        holder = Holder.parse(content)
        if not holder.is_known_dead:
            self._report(
                f"the sink is in use by {holder}: waiting up to {LEASE_TIMEOUT_S:g} s for its "
                "heartbeat"
            )
            content = self._watch(content)
        self._abandoned = content
        return content

    def _watch(self, content: Content) -> Content | None:
        """Return the lease file if it does not change, None if it is removed."""
        deadline = self._clock.now() + LEASE_TIMEOUT_S
        while self._clock.now() < deadline:
            self._clock.sleep(_POLL_S)
            now = self._file.read() if self._file else None
            if now is None:
                return None
            if now.data != content.data:
                raise SinkError(
                    f"the sink {self._sink_uri} is in use by {Holder.parse(now)}; wait until that "
                    "run ends, or use another sink"
                )
        return content

    def acquire(self) -> None:
        """Take the lease and start the heartbeats.

        Raises:
            SinkError: Another active run has the lease, or the sink cannot be written.
        """
        if self._file is None:
            self._report(
                "this storage has no leases: make sure that no second run writes into the sink"
            )
            return
        holder = Holder.this_process()
        try:
            for _ in range(_MAX_ATTEMPTS):  # if another run is faster, its heartbeat is detected
                if self._file.put(holder.to_json(), self.wait_until_free()) and self._has(holder):
                    break
            else:
                raise SinkError(
                    f"several runs start in {self._sink_uri} at the same time; start one of them "
                    "again"
                )
        except AccessDeniedError as error:
            raise SinkError(f"the sink cannot be used: {error}") from None
        self._holder = holder
        self._end_heartbeats = self._clock.repeat(self._heartbeat, HEARTBEAT_S)

    def _has(self, holder: Holder) -> bool:
        content = self._file.read() if self._file else None
        return content is not None and Holder.parse(content).token == holder.token

    def check(self) -> None:
        """Raise CvbatchError if another run has taken over the sink."""
        if self._error:
            raise self._error

    def _heartbeat(self) -> None:
        if self._file is None or self._holder is None or self._error:
            return
        try:
            content = self._file.read()
            holder = Holder.parse(content) if content else None
            if holder is None or holder.token != self._holder.token:
                self._error = _lost(self._sink_uri, content)
                return
            self._file.put(self._holder._replace(beat=holder.beat + 1).to_json(), content)
        except StoreError as error:  # the job stops by itself if the storage stays unreachable
            log.warning("the lease could not be renewed: %s", error)

    def _release(self, holder: Holder) -> None:
        try:
            if self._file and self._has(holder):
                self._file.remove()
        except StoreError as error:  # the lease times out without this
            log.warning("the lease could not be released: %s", error)
