"""Measure seconds per stage and bytes read of a chunk, and count what was not read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from cvbatch.core.ignored import Ignored

T = TypeVar("T")
STAGES = ("read", "decode", "predict", "write")


class StageTimer:
    """A clock that runs for one stage at a time, so that no second counts twice.

    Stages are nested generators: while a stage waits for the next item of the stage before it, the
    clock runs for that one. Files are fetched ahead, so "read" is only the time spent waiting.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.num_bytes_read = 0
        self.ignored = Ignored()  # members of tars and zips that were not read
        self._stage, self._since = "", 0.0

    @classmethod
    def from_json(cls, texts: Iterable[str]) -> StageTimer:
        """Return the sum of timers that `as_json` wrote."""
        total = cls()
        for values in map(json.loads, texts):
            for stage in STAGES:
                total.seconds[stage] += values["seconds"][stage]
            total.num_bytes_read += values["num_bytes_read"]
            total.ignored.merge(values["ignored"], values["ignored_examples"])
        return total

    def as_json(self) -> str:
        """Return seconds and bytes as JSON, to pass them to another process."""
        values = {
            "seconds": self.seconds,
            "num_bytes_read": self.num_bytes_read,
            "ignored": self.ignored.counts,
            "ignored_examples": self.ignored.examples,
        }
        return json.dumps(values)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Run the clock for a stage; after the block, for the stage before."""
        before = self._switch_to(stage)
        try:
            yield
        finally:
            self._switch_to(before)

    def measure_items(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the clock runs for the stage while each is produced."""
        iterator = iter(items)
        while True:
            with self.measure(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
            del item  # releases a batch of pixels before the next one is produced

    def _switch_to(self, stage: str) -> str:
        """Run the clock for a stage, "" for none; return the stage before."""
        now, before = time.perf_counter(), self._stage
        if before:
            self.seconds[before] += now - self._since
        self._stage, self._since = stage, now
        return before
