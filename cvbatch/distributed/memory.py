"""Memory that a process needs at least, and the largest batch that fits.

The estimate is a lower bound: weights, pixels of the batch, and the feature maps that must be in
memory together. The Python interpreter, Ray and queued images need more.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvbatch.distributed import hardware
from cvbatch.distributed.resources import Allocation, Resources, max_actors_on_node


@dataclass(frozen=True)
class MemoryNeed:
    """Minimum memory of a process: a fixed part, and a part per image of the batch."""

    fixed_bytes: int
    bytes_per_image: int

    def of(self, batch_size: int) -> int:
        """Return the bytes for a batch of `batch_size` images."""
        return self.fixed_bytes + batch_size * self.bytes_per_image


def largest_batch(memory_bytes: int, fixed_bytes: int, bytes_per_image: int) -> int:
    """Return the largest batch that fits; 0 if not even one image fits.

    Args:
        fixed_bytes: memory that does not depend on the batch.
        bytes_per_image: at least 1.
    """
    return max(0, memory_bytes - fixed_bytes) // bytes_per_image


def training_need(
    weight_bytes: int, trainable_bytes: int, training_bytes: int, optimizer_slots: int
) -> MemoryNeed:
    """Return the memory of a training step.

    Args:
        weight_bytes: all weights.
        trainable_bytes: the trainable weights: each has a gradient and its optimizer variables.
        training_bytes: the feature maps of one image that backpropagation needs.
        optimizer_slots: optimizer variables per weight: SGD 0, with momentum 1, Adam 2.
    """
    return MemoryNeed(weight_bytes + trainable_bytes * (1 + optimizer_slots), training_bytes)


def memory_per_actor(
    requested_bytes: int | None, allocation: Allocation, resources: Resources
) -> int | None:
    """Return the memory of an actor or training worker, in bytes; None if it is unknown.

    Args:
        requested_bytes: the value of the job file. None: the share of the GPU, or of the memory of
            a node divided by its actors, whichever node has least.
    """
    if requested_bytes is not None:
        return requested_bytes
    if allocation.gpus_per_actor > 0:
        total = hardware.gpu_memory_bytes()
        return None if total is None else int(total * min(1.0, allocation.gpus_per_actor))
    shares = [
        node.memory_bytes // num_actors
        for node in resources.nodes
        if node.memory_bytes is not None
        and (num_actors := max_actors_on_node(node, allocation)) > 0
    ]
    return min(shares, default=None)
