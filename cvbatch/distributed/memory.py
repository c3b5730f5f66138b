"""Refuses a batch that cannot fit the memory it would run in, and says which would.

Only what is certain is held against a batch: weights, its pixels, the feature maps that must lie
side by side. The interpreter, Ray and the images on their way come on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvbatch.distributed import hardware
from cvbatch.distributed.resources import Allocation, Resources, max_actors_on_node


@dataclass(frozen=True)
class MemoryNeed:
    """The least that a process holds: some whatever the batch, and some for each of its images."""

    fixed_bytes: int
    bytes_per_image: int

    def of(self, batch_size: int) -> int:
        """Return the bytes that a batch of that size takes."""
        return self.fixed_bytes + batch_size * self.bytes_per_image


def largest_batch(memory_bytes: int, held_bytes: int, bytes_per_image: int) -> int:
    """Return the largest batch that fits; 0 where not even one image does.

    held_bytes: what is there whatever the batch. bytes_per_image: at least 1.
    """
    return max(0, memory_bytes - held_bytes) // bytes_per_image


def training_need(
    weight_bytes: int, trainable_bytes: int, training_bytes: int, optimizer_slots: int
) -> MemoryNeed:
    """Return what a training step holds.

    trainable_bytes: of the weights that are trained: each has a gradient and as many numbers of
    the optimizer as it has slots (SGD 0, with momentum 1, Adam 2). training_bytes: of one image,
    the maps that the gradient goes back through.
    """
    return MemoryNeed(weight_bytes + trainable_bytes * (1 + optimizer_slots), training_bytes)


def memory_per_actor(
    said_bytes: int | None, wiring: Allocation, resources: Resources
) -> int | None:
    """Return the bytes an actor has for its models, or a worker for training; None: nobody tells.

    As the job says; else its share of the GPU it runs on, or of the node with the least for
    each of the actors that come to lie there.
    """
    if said_bytes is not None:
        return said_bytes
    if wiring.gpus_per_actor > 0:
        whole = hardware.gpu_memory_bytes()
        return None if whole is None else int(whole * min(1.0, wiring.gpus_per_actor))
    shares = [
        node.memory_bytes // num_actors
        for node in resources.nodes
        if node.memory_bytes is not None and (num_actors := max_actors_on_node(node, wiring)) > 0
    ]
    return min(shares, default=None)
