"""What the workers of a training tell one another goes through here: sums, means, bytes.

Every method is a meeting: all workers call it at the same time, in the same order, or none
returns. With one worker there is nobody to meet, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Variable = Any  # a keras.Variable; Keras carries no type information
Tensor = Any  # a tf.Tensor, or one for each replica


class Replicas:
    """The workers of a tf.distribute strategy, and the copies of the network they hold.

    strategy: the current one by default, which is one worker with one copy unless a scope says
    otherwise. A worker with several devices holds a copy, a replica, on each.
    """

    def __init__(self, strategy: Any = None) -> None:
        self.strategy = strategy or tf.distribute.get_strategy()
        resolver = self.strategy.cluster_resolver
        cluster = resolver.cluster_spec().as_dict() if resolver is not None else {}
        chiefs, workers = (len(cluster.get(job, ())) for job in ("chief", "worker"))
        self.num_workers: int = max(1, chiefs + workers)
        self.worker: int = 0  # the number of this one
        if cluster and resolver is not None and resolver.task_type == "worker":
            self.worker = chiefs + int(resolver.task_id)
        self._programs: dict[tuple[Any, ...], Any] = {}

    @property
    def num_replicas(self) -> int:
        """Return how many copies of the network there are, on all workers."""
        return int(self.strategy.num_replicas_in_sync)

    @property
    def num_local(self) -> int:
        """Return how many of them this worker holds."""
        return self.num_replicas // self.num_workers

    @property
    def is_chief(self) -> bool:
        """Say whether this is the one worker that writes files."""
        return self.worker == 0

    def first(self, value: Tensor) -> Tensor:
        """Return a value of one replica of what may be a value for each."""
        return self.strategy.experimental_local_results(value)[0]

    def average(self, variables: Sequence[Variable]) -> None:
        """Give each variable the mean of its values in all replicas."""
        self._assign("mean", variables, lambda v: all_reduce(v, tf.distribute.ReduceOp.MEAN))

    def broadcast(self, variables: Sequence[Variable]) -> None:
        """Give each variable the value it has in the chief's first replica, to the bit."""

        def chosen(values: list[Tensor]) -> list[Tensor]:
            is_source = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
            # A sum of one value and zeros is that value.
            return all_reduce([tf.where(is_source, value, tf.zeros_like(value)) for value in values])

        self._assign("chief", variables, chosen)

    def offset_seeds(self, states: Sequence[Variable]) -> None:
        """Give replica r seeds that are r larger, so that no two drop the same units.

        states: of Keras' seed generators, equal in all replicas.
        """
        if self.num_replicas == 1:
            return

        def vary() -> None:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            for state in states:
                state.assign(state.value + tf.cast(tf.stack([replica, 0]), state.value.dtype))

        self._compiled(vary)()

    def _assign(
        self, how: str, variables: Sequence[Variable], reduce: Callable[[list[Tensor]], Any]
    ) -> None:
        if self.num_replicas == 1 or not variables:
            return
        key = (how, *map(id, variables))  # the program keeps the variables, so ids stay theirs

        def reduced() -> Any:
            # identity: what is reduced must lie on this replica's device, a plain read does not.
            return reduce([tf.identity(variable.value) for variable in variables])

        if key not in self._programs:
            self._programs[key] = self._compiled(reduced)
        for variable, value in zip(variables, self._programs[key](), strict=True):
            variable.assign(self.first(value))

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Return the payloads of all workers, in the order of their numbers."""
        if self.num_workers == 1:
            return [payload]
        sizes = self._sum_of_rows(np.array([len(payload)], np.int32))[:, 0]
        # The sums of collective operations know 4-byte integers, no bytes, and fail on none at
        # all; powers of two, so that few lengths are ever compiled.
        width = 4 << (int(sizes.max()) // 4).bit_length()
        rows = self._sum_of_rows(np.frombuffer(payload.ljust(width, b"\0"), np.int32))
        return [row.tobytes()[:size] for row, size in zip(rows, sizes.tolist(), strict=True)]

    def _sum_of_rows(self, own: np.ndarray) -> np.ndarray:  # (L,) → (workers, L) int32
        rows = np.zeros((self.num_workers, own.size), np.int32)
        rows[self.worker] = own

        def add(table: Tensor) -> Tensor:
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            is_first = replica % self.num_local == 0
            return all_reduce([tf.where(is_first, table, tf.zeros_like(table))])[0]

        key = ("gather", own.size)
        if key not in self._programs:
            self._programs[key] = self._compiled(add, tf.TensorSpec(rows.shape, tf.int32))
        result: np.ndarray = self.first(self._programs[key](tf.constant(rows))).numpy()
        return result

    def _compiled(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Return a program that runs the function in every replica."""
        program = tf.function(lambda *args: self.strategy.run(function, args=args), autograph=False)
        return program.get_concrete_function(*inputs)


def all_reduce(values: list[Tensor], how: Any = tf.distribute.ReduceOp.SUM) -> list[Tensor]:
    """Return each value summed (or reduced as `how` says) over all replicas; call it in one."""
    context = tf.distribute.get_replica_context()
    result: list[Tensor] = list(values)
    for dtype in dict.fromkeys(value.dtype for value in values):  # all of a type travel together
        at = [i for i, value in enumerate(values) if value.dtype == dtype]
        for i, total in zip(at, context.all_reduce(how, [values[i] for i in at]), strict=True):
            result[i] = total
    return result
