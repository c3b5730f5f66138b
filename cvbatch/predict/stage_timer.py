"""What a chunk takes, counted where it is worked on: seconds of each stage, bytes that are read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
STAGES = ("read", "decode", "predict", "write")


class StageTimer:
    """A clock that runs for one stage at a time, so that no second counts twice.

    Stages ask one another for their next thing: whoever is asked has the clock until it answers.
    Files are fetched ahead, so the seconds of reading are those that somebody waited.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.num_bytes_read = 0
        self._stage, self._since = "", 0.0

    @classmethod
    def of(cls, texts: Iterable[str]) -> StageTimer:
        """Return the sum of efforts that were written as JSON."""
        whole = cls()
        for said in map(json.loads, texts):
            for stage in STAGES:
                whole.seconds[stage] += said["seconds"][stage]
            whole.num_bytes_read += said["num_bytes_read"]
        return whole

    def as_json(self) -> str:
        """Return the effort as text, for the way between two processes."""
        return json.dumps({"seconds": self.seconds, "num_bytes_read": self.num_bytes_read})

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """Have the clock run for a stage; after the block for the one before."""
        before = self._turn_to(stage)
        try:
            yield
        finally:
            self._turn_to(before)

    def along(self, stage: str, things: Iterable[T]) -> Iterator[T]:
        """Yield the things as they come; the clock runs for the stage while they are made."""
        waiting = iter(things)
        while True:
            with self.at(stage):
                try:
                    thing = next(waiting)
                except StopIteration:
                    return
            yield thing
            del thing  # a batch of pixels: not held while the next one is made

    def _turn_to(self, stage: str) -> str:
        """Give the clock to a stage, "" for none; return who had it."""
        now, before = time.perf_counter(), self._stage
        if before:
            self.seconds[before] += now - self._since
        self._stage, self._since = stage, now
        return before
