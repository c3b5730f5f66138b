"""Collectives between training workers: all-reduce, all-gather, broadcast.

Every method of `Replicas` is a collective call: all workers must make the same calls in the same
order, or they wait forever. With one worker nothing is sent or copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cvbatch.models.frameworks import tf

Variable = Any  # a keras.Variable; Keras carries no type information
Tensor = Any  # a tf.Tensor, or one for each replica


class Replicas:
    """The workers of a tf.distribute strategy, and their replicas of the network.

    A worker with several devices has one replica on each.

    Args:
        strategy: a tf.distribute strategy; None: the current one, by default one replica on one
            worker.

    Attributes:
        num_workers: number of workers of the strategy.
        worker: number of this worker, from 0.
    """

    def __init__(self, strategy: Any = None) -> None:
        self.strategy = strategy or tf.distribute.get_strategy()
        resolver = self.strategy.cluster_resolver
        cluster = resolver.cluster_spec().as_dict() if resolver is not None else {}
        chiefs, workers = (len(cluster.get(job, ())) for job in ("chief", "worker"))
        self.num_workers: int = max(1, chiefs + workers)
        self.worker: int = 0
        if cluster and resolver is not None and resolver.task_type == "worker":
            self.worker = chiefs + int(resolver.task_id)
        self._programs: dict[tuple[Any, ...], Any] = {}

    @property
    def num_replicas(self) -> int:
        """Return the number of replicas on all workers."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def num_local(self) -> int:
        """Return the number of replicas on this worker."""
        return self.num_replicas // self.num_workers

    @property
    def is_chief(self) -> bool:
        """Return whether this is worker 0, the only one that writes files."""
        return self.worker == 0

    def first_local(self, value: Tensor) -> Tensor:
        """Return the value of this worker's first replica."""
        return self.strategy.experimental_local_results(value)[0]

    def average(self, variables: Sequence[Variable]) -> None:
        """Set each variable to its mean over all replicas."""
        self._assign("mean", variables, lambda v: all_reduce(v, tf.distribute.ReduceOp.MEAN))

    def broadcast(self, variables: Sequence[Variable]) -> None:
        """Set each variable to its exact value in the first replica of worker 0."""

        def from_chief(values: list[Tensor]) -> list[Tensor]:
            is_source = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
            # The sum of one value and zeros is that value.
            return all_reduce([tf.where(is_source, v, tf.zeros_like(v)) for v in values])

        self._assign("chief", variables, from_chief)

    def offset_seeds(self, states: Sequence[Variable]) -> None:
        """Add r to the seeds of replica r, so that dropout differs between replicas.

        Args:
            states: variables of Keras' seed generators, equal in all replicas.
        """
        if self.num_replicas == 1:
            return

        def offset() -> None:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            for state in states:
                state.assign(state.value + tf.cast(tf.stack([replica, 0]), state.value.dtype))

        self._compile(offset)()

    def _assign(
        self, operation: str, variables: Sequence[Variable], reduce: Callable[[list[Tensor]], Any]
    ) -> None:
        if self.num_replicas == 1 or not variables:
            return
        # The compiled program references the variables, so their ids stay valid.
        key = (operation, *map(id, variables))

        def reduced() -> Any:
            # identity: a reduced value must be on this replica's device; a plain read is not.
            return reduce([tf.identity(variable.value) for variable in variables])

        if key not in self._programs:
            self._programs[key] = self._compile(reduced)
        for variable, value in zip(variables, self._programs[key](), strict=True):
            variable.assign(self.first_local(value))

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Return the payloads of all workers, by worker number."""
        if self.num_workers == 1:
            return [payload]
        sizes = self._gather_rows(np.array([len(payload)], np.int32))[:, 0]
        # An all-reduce supports 4-byte integers but not bytes, and fails on empty arrays. The width
        # is a power of two, so that few programs are compiled.
        width = 4 << (int(sizes.max()) // 4).bit_length()
        rows = self._gather_rows(np.frombuffer(payload.ljust(width, b"\0"), np.int32))
        return [row.tobytes()[:size] for row, size in zip(rows, sizes.tolist(), strict=True)]

    def _gather_rows(self, row: np.ndarray) -> np.ndarray:  # (L,) → (workers, L) int32
        """Return the rows of all workers, as the sum of tables with one non-zero row each."""
        rows = np.zeros((self.num_workers, row.size), np.int32)
        rows[self.worker] = row

        def add(table: Tensor) -> Tensor:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            is_first = replica % self.num_local == 0
            return all_reduce([tf.where(is_first, table, tf.zeros_like(table))])[0]

        key = ("gather", row.size)
        if key not in self._programs:
            self._programs[key] = self._compile(add, tf.TensorSpec(rows.shape, tf.int32))
        result: np.ndarray = self.first_local(self._programs[key](tf.constant(rows))).numpy()
        return result

    def _compile(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Return a program that runs the function in every replica."""
        program = tf.function(lambda *args: self.strategy.run(function, args=args), autograph=False)
        return program.get_concrete_function(*inputs)


def all_reduce(values: list[Tensor], operation: Any = tf.distribute.ReduceOp.SUM) -> list[Tensor]:
    """Return each value reduced over all replicas; must be called in a replica context.

    Args:
        values: tensors of any shapes and dtypes.
        operation: a tf.distribute.ReduceOp, by default the sum.
    """
    context = tf.distribute.get_replica_context()
    result: list[Tensor] = list(values)
    for dtype in dict.fromkeys(value.dtype for value in values):  # one message for each dtype
        indices = [i for i, value in enumerate(values) if value.dtype == dtype]
        reduced = context.all_reduce(operation, [values[i] for i in indices])
        for i, total in zip(indices, reduced, strict=True):
            result[i] = total
    return result
