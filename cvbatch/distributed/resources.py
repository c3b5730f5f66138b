"""CPUs, GPUs and memory of a cluster's nodes, and how many actors they have room for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cvbatch.distributed import hardware


@dataclass(frozen=True)
class Node:
    """What one machine of a cluster can give."""

    num_cpus: float
    num_gpus: float
    memory_bytes: int | None  # None: not known


@dataclass(frozen=True)
class Resources:
    """What a Ray cluster can give a job."""

    num_cpus: float
    num_gpus: float
    nodes: tuple[Node, ...] = ()  # those that are alive; none where only the sums are known

    def actors_that_fit(self, cpus: float, gpus: float) -> int:
        """Return how many actors that ask for `cpus` and `gpus` each the nodes have room for."""
        whole = (Node(self.num_cpus, self.num_gpus, None),)
        return sum(actors_that_fit(node, cpus, gpus) for node in self.nodes or whole)


def local_resources() -> Resources:
    """Return what a local Ray would have, without starting it."""
    cpus, gpus = float(hardware.num_cpus()), float(hardware.num_gpus())
    return Resources(cpus, gpus, (Node(cpus, gpus, hardware.memory_bytes()),))


@dataclass(frozen=True)
class Allocation:
    """How the work lies on the cluster."""

    arrangement: str  # "fused" | "streaming"
    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    max_actors: int = 0  # that there may be if the cluster grows


def max_actors_on_node(node: Node, wiring: Allocation) -> int:
    """Return how many of a job's actors may come to lie on a node."""
    return min(
        actors_that_fit(node, wiring.cpus_per_actor, wiring.gpus_per_actor), wiring.num_actors
    )


def actors_that_fit(node: Node, cpus: float, gpus: float) -> int:
    """Return how many actors that ask for `cpus` and `gpus` each a node has room for."""
    room = math.floor(node.num_cpus / cpus + 1e-9)
    return min(room, math.floor(node.num_gpus / gpus + 1e-9)) if gpus > 0 else room
