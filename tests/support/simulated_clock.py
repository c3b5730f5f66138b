"""A simulated clock: time advances in `sleep`, which also makes the heartbeats that are due."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from cvbatch.storage.lease import Clock


@dataclass
class _Call:
    action: Callable[[], None]
    interval_s: float
    due_s: float
    is_ended: bool = False

    def end(self) -> None:
        self.is_ended = True


class SimulatedClock(Clock):
    """Clock of several runs in one process; `sleep` makes the due calls in order."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self._calls: list[_Call] = []
        self._lock = threading.RLock()

    def now(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        with self._lock:
            end_s = self.time_s + seconds
            while due := [c for c in self._calls if not c.is_ended and c.due_s <= end_s]:
                call = min(due, key=lambda c: c.due_s)
                self.time_s = call.due_s
                call.due_s += call.interval_s
                call.action()
            self.time_s = end_s

    def repeat(self, action: Callable[[], None], interval_s: float) -> Callable[[], None]:
        with self._lock:
            call = _Call(action, interval_s, self.time_s + interval_s)
            self._calls.append(call)
        return call.end
