"""Count attempts per chunk, because Ray restarts failed tasks without a limit.

Ray Data restarts its tasks and actors as often as they die. A task whose input crashes it would
restart for ever, so each attempt is registered before it starts and removed when it has ended.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MODELS, DECODE, WRITE = "models", "decode", "write"  # stages


class Attempts:
    """Attempts of one job; runs as a Ray actor, see `start_attempts`."""

    def __init__(self) -> None:
        self._started: Counter[tuple[str, str]] = Counter()
        self._decoded: set[str] = set()  # ids of chunks whose writing has not started

    def begin(self, stage: str, chunk_id: str = "") -> int:
        """Register an attempt; return the number of earlier ones that have not ended."""
        if stage == WRITE:
            self._decoded.discard(chunk_id)
        self._started[stage, chunk_id] += 1
        return self._started[stage, chunk_id] - 1

    def end(self, stage: str, chunk_id: str = "") -> None:
        """Remove all attempts of a stage that is done."""
        if stage == DECODE:
            self._decoded.add(chunk_id)
        del self._started[stage, chunk_id]

    def depths(self) -> dict[str, int]:
        """Return the number of chunks in each stage or queued for it."""
        started = Counter(stage for stage, _ in self._started)
        return {"decode": started[DECODE], "predict": len(self._decoded), "write": started[WRITE]}


def start_attempts() -> Any:
    """Start the actor on the driver's node; it ends when its handle is deleted."""
    node_id = ray.get_runtime_context().get_node_id()
    driver_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=driver_node).remote()
