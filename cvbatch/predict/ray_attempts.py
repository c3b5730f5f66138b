"""Counts what is begun and never ended, where Ray begins it again unasked, and for ever.

Ray Data's tasks and actors are started again as often as they die. What dies of its own doing would
never stop; so the work is entered here before it is begun, and struck out when it is done.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MODELS, DECODE, WRITE = "models", "decode", "write"  # what is attempted


class Attempts:
    """The counts of one job, as a Ray actor: `start_attempts`."""

    def __init__(self) -> None:
        self._begun: Counter[tuple[str, str]] = Counter()
        self._decoded: set[str] = set()  # chunks that nobody has begun to write

    def begin(self, what: str, chunk_id: str = "") -> int:
        """Return how often it was begun before since it was last done; count this time in."""
        if what == WRITE:
            self._decoded.discard(chunk_id)
        self._begun[what, chunk_id] += 1
        return self._begun[what, chunk_id] - 1

    def end(self, what: str, chunk_id: str = "") -> None:
        """Hear that it is done."""
        if what == DECODE:
            self._decoded.add(chunk_id)
        del self._begun[what, chunk_id]

    def depths(self) -> dict[str, int]:
        """Return how many chunks each stage has before it or in it."""
        begun = Counter(what for what, _ in self._begun)
        return {"decode": begun[DECODE], "predict": len(self._decoded), "write": begun[WRITE]}


def start_attempts() -> Any:
    """Start the counts beside the driver, with which they may die; they end with their handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote()
