"""One run at a time in a sink: a file says who runs there, and its beat that they are alive.

No clocks are compared: who finds the file watches whether its beat goes on. Without this nothing
would be corrupted, as two runs write the same bytes; they would do the work twice.
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
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from cvbatch.core.errors import AccessDeniedError, CvbatchError, SinkError, StoreError
from cvbatch.storage import store
from cvbatch.storage.conditional_write import ConditionalFile, Content, conditional_file

log = logging.getLogger(__name__)

NAME = "_cvbatch/lease.json"
BEAT_S = 5.0
PATIENCE_S = 20.0  # without a beat, then the holder counts as dead
_LOOK_S = 0.5
_TRIES = 5
_LAST_BEAT_S = 2.0  # that a run which ends waits for a beat under way

Say = Callable[[str], None]


class Holder(NamedTuple):
    """Which run a lease belongs to."""

    host: str
    machine: str  # tells one boot of one machine from all others; "" where that is not known
    pid: int
    pid_started: str
    started: str  # UTC
    token: str
    beat: int = 0

    @classmethod
    def here(cls) -> Holder:
        """Return this process as the holder of a new lease."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        born = _birth_of(pid) or ""
        return cls(socket.gethostname(), _machine(), pid, born, now, secrets.token_hex(8))

    @classmethod
    def of(cls, content: Content) -> Holder:
        """Return the holder that a lease names; an unknown one where it is damaged."""
        try:
            return cls(**json.loads(content.data))
        except (ValueError, TypeError):
            return cls("an unknown host", "", 0, "", "an unknown time", "")

    @property
    def content(self) -> bytes:
        """Return the lease's file."""
        return json.dumps(self._asdict()).encode()

    @property
    def is_dead_here(self) -> bool:
        """Say whether it was a process of this machine that is no more."""
        is_here = self.machine != "" and self.machine == _machine()
        return is_here and _birth_of(self.pid) != self.pid_started

    def __str__(self) -> str:
        return f"a run on {self.host} (process {self.pid}), begun {self.started}"


def _machine() -> str:
    """Return the boot and the space of process ids this process lives in."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _birth_of(pid: int) -> str | None:
    """Return when a process of this machine began, in ticks since boot; None where it is gone."""
    try:
        state, *facts = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except OSError:
        return None
    return None if state in "ZX" else facts[18]


def holder_in(sink_uri: str) -> Holder | None:
    """Return the run that holds a sink, as far as can be said at once."""
    slot = _slot(sink_uri)
    content = slot.read() if slot else None
    holder = Holder.of(content) if content else None
    return None if holder is None or holder.is_dead_here else holder


def _slot(sink_uri: str) -> ConditionalFile | None:
    return conditional_file(store.join(store.absolute(sink_uri), NAME))


class Lease:
    """The right to write into a sink; given back at the end of the block it is entered for."""

    def __init__(self, sink_uri: str, say: Say) -> None:
        self._sink_uri, self._say = sink_uri, say
        self._abandoned: Content | None = None  # a lease that was seen to be nobody's any more
        self._mine: Holder | None = None
        self._is_ending = threading.Event()
        self._lost_to = ""
        self._beating: threading.Thread | None = None

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_ending.set()
        if self._beating:
            self._beating.join(_LAST_BEAT_S)
        if self._mine and not self._lost_to and not isinstance(error, StoreError):
            self._give_back(self._mine)  # a store that failed is not asked again

    @cached_property
    def _slot(self) -> ConditionalFile | None:
        return _slot(self._sink_uri)

    def wait_until_free(self) -> Content | None:
        """Return what a dead run left, None where nothing is there. Writes nothing.

        Raises:
            SinkError: another run holds the sink, and lives, or the sink cannot be read.
        """
        try:
            seen = self._slot.read() if self._slot else None
        except AccessDeniedError as error:
            raise SinkError(f"the sink cannot be used: {error}") from None
        if seen is None or seen == self._abandoned:
            return seen
        holder = Holder.of(seen)
        if not holder.is_dead_here:
            self._say(f"the sink is held by {holder}: looking for {PATIENCE_S:g} s if it lives")
            seen = self._watch(seen)
        self._abandoned = seen
        return seen

    def _watch(self, seen: Content) -> Content | None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            now = self._slot.read() if self._slot else None
            if now is None:
                return None  # it ended
            if now.data != seen.data:
                raise SinkError(
                    f"the sink {self._sink_uri} is in use by {Holder.of(now)}; wait until it "
                    "ends, or name another sink"
                )
        return seen

    def take(self) -> None:
        """Hold the sink from now on.

        Raises:
            SinkError: another run holds the sink, and lives, or the sink cannot be written.
        """
        if self._slot is None:
            self._say("this store cannot tell of other runs: let no second one write to the sink")
            return
        mine = Holder.here()
        try:
            for _ in range(_TRIES):  # where another was quicker, its beat will be seen
                if self._slot.put(mine.content, self.wait_until_free()) and self._is(mine):
                    break
            else:
                raise SinkError(f"several runs begin in {self._sink_uri} at once; start one again")
        except AccessDeniedError as error:
            raise SinkError(f"the sink cannot be used: {error}") from None
        self._mine = mine
        self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._beating.start()

    def _is(self, mine: Holder) -> bool:
        now = self._slot.read() if self._slot else None
        return now is not None and Holder.of(now).token == mine.token

    def check(self) -> None:
        """Raise CvbatchError where another run has taken the sink over."""
        if self._lost_to:
            raise CvbatchError(
                f"the sink {self._sink_uri} was taken over by {self._lost_to}, while this run gave "
                "no sign of life; let it end"
            )

    def _beat(self) -> None:
        while not self._lost_to and not self._is_ending.wait(BEAT_S):
            try:
                self._renew()
            except StoreError as error:  # the job itself stops where the store stays away
                log.warning("the lease could not be renewed: %s", error)

    def _renew(self) -> None:
        if self._slot is None or self._mine is None:
            return
        now = self._slot.read()
        holder = Holder.of(now) if now else None
        if holder is None or holder.token != self._mine.token:
            self._lost_to = str(holder or "another run, which has ended since")
            return
        self._slot.put(self._mine._replace(beat=holder.beat + 1).content, now)

    def _give_back(self, mine: Holder) -> None:
        try:
            if self._slot and self._is(mine):
                self._slot.remove()
        except StoreError as error:  # the run has ended as it has; its lease runs out by itself
            log.warning("the lease could not be given back: %s", error)
