"""Counts what is begun and never ended, where Ray begins it again unasked, and for ever.

Ray Data's tasks and actors are started again as often as they die. What dies of its own doing would
never stop; so the work is entered here before it is begun, and struck out when it is done.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Attempts:
    """The counts of one job, as a Ray actor: `start_attempts`."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, what: str) -> int:
        """Return how often it was begun before since it was last done; count this time in."""
        self._begun[what] += 1
        return self._begun[what] - 1

    def end(self, what: str) -> None:
        """Hear that it is done."""
        del self._begun[what]


def start_attempts() -> Any:
    """Start the counts beside the driver, with which they may die; they end with their handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote()
