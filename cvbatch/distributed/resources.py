"""CPUs, GPUs and memory of the nodes of a Ray cluster, and the number of actors that fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cvbatch.core.errors import ConfigError
from cvbatch.distributed import hardware


@dataclass(frozen=True)
class Node:
    """Resources of one node."""

    num_cpus: float
    num_gpus: float
    memory_bytes: int | None  # None: unknown


@dataclass(frozen=True)
class Resources:
    """Resources of a Ray cluster."""

    num_cpus: float
    num_gpus: float
    nodes: tuple[Node, ...] = ()  # alive nodes; empty if only the totals are known

    def actors_that_fit(self, cpus: float, gpus: float) -> int:
        """Return how many actors with `cpus` and `gpus` each fit on the nodes."""
        total = (Node(self.num_cpus, self.num_gpus, None),)
        return sum(actors_that_fit(node, cpus, gpus) for node in self.nodes or total)

    def max_workers(self, requested: int | None) -> int:
        """Return how many workers with one CPU each fit, at least 1.

        Raises:
            ConfigError: fewer fit than the job requests (`run.workers`; None: no number).
        """
        count = max(1, int(self.num_cpus))
        if requested is not None and requested > count:
            raise ConfigError(
                f"run.workers: {requested} do not fit a cluster of {self.num_cpus:g} CPU; "
                f"{count} would"
            )
        return count


def local_resources() -> Resources:
    """Return the resources of a local Ray, without starting it."""
    cpus, gpus = float(hardware.num_cpus()), float(hardware.num_gpus())
    return Resources(cpus, gpus, (Node(cpus, gpus, hardware.memory_bytes()),))


@dataclass(frozen=True)
class Allocation:
    """Number of actors of a job and the resources of each."""

    arrangement: str  # "fused" | "streaming"
    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    max_actors: int = 0  # upper limit if the cluster grows


def max_actors_on_node(node: Node, allocation: Allocation) -> int:
    """Return the maximum number of the job's actors on a node."""
    return min(
        actors_that_fit(node, allocation.cpus_per_actor, allocation.gpus_per_actor),
        allocation.num_actors,
    )


def actors_that_fit(node: Node, cpus: float, gpus: float) -> int:
    """Return how many actors with `cpus` and `gpus` each fit on a node."""
    count = math.floor(node.num_cpus / cpus + 1e-9)
    return min(count, math.floor(node.num_gpus / gpus + 1e-9)) if gpus > 0 else count
