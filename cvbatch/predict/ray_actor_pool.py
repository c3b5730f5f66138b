"""Fused mode: a pool of actors that work on chunks and are replaced when they die.

Ray's own pool and restarts would hide which chunk an actor died of, and would wait for actors that
cannot start. Here actors never restart: the chunk of a dead actor returns to the front of the
queue, a new actor is requested, and the other actors continue while there are no resources for it.
A chunk that keeps crashing its actors is decoded in a child process
(`cvbatch.images.isolated_decode`); if it crashes them still, the job stops.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from cvbatch.core.errors import CvbatchError
from cvbatch.core.types import ChunkRef, ChunkReport, Log
from cvbatch.distributed.resources import Allocation
from cvbatch.distributed.session import actors_now
from cvbatch.planning.plan import read_chunk
from cvbatch.predict.steps import FusedWorker, PredictSpec
from cvbatch.storage.store import Storage

ISOLATE_AFTER = 2  # crashes: from then on the images of a chunk are decoded in a child process
MAX_DEATHS = 4  # crashes of a chunk, two of them with isolated decoding; then the job stops
_MAX_FAILED_STARTS = 3  # actors that die in a row before one is ready; then the job stops
_POLL_INTERVAL_S = 5.0  # between two looks at the resources of the cluster
_NO_ACTOR_TIMEOUT_S = 1800.0  # a cluster that scales may have to start a machine

# Ray raises these if a worker is gone: its process or its node died, or memory ran out. Our own
# errors have other types, so that a faulty job is not retried.
_DEATHS = (
    RayActorError,
    WorkerCrashedError,
    OutOfMemoryError,
    NodeDiedError,
    LocalRayletDiedError,
)


class _Call(NamedTuple):
    """A running call of an actor."""

    actor: Any
    ref: ChunkRef | None  # None: `load`


class ActorPool:
    """The actors of one job and their calls.

    The constructor requests the actors, so that they start while the models are compiled.

    Args:
        allocation: number and resources of actors.
        report: receives a line about each actor that dies.
    """

    def __init__(self, allocation: Allocation, report: Log = lambda _: None) -> None:
        self._allocation, self._report = allocation, report
        self._class = ray.remote(FusedWorker).options(
            num_cpus=allocation.cpus_per_actor,
            num_gpus=allocation.gpus_per_actor,
            max_restarts=0,
            max_task_retries=0,
        )
        self._num_wanted = allocation.num_actors
        self._starting = [self._class.remote() for _ in range(allocation.num_actors)]
        self._idle: list[Any] = []
        self._calls: dict[Any, _Call] = {}  # by the reference to the result
        self._queue: deque[ChunkRef] = deque()
        self._deaths: Counter[str] = Counter()  # by chunk id
        self._num_failed_starts = 0  # since an actor last returned a result
        self._last_cause = ""
        self._last_active = self._last_poll = time.monotonic()

    def run(
        self, refs: Sequence[ChunkRef], spec: PredictSpec
    ) -> Generator[ChunkReport, None, None]:
        """Process the chunks; yield the report of each once its file is written.

        The actors end when the generator ends.

        Raises:
            CvbatchError: a chunk keeps crashing its actors, or no actor can start.
            ray.exceptions.RayError: any other error of an actor.
        """
        self._queue.extend(refs)
        self._last_active = time.monotonic()
        shared_spec = ray.put(spec)
        try:
            while self._queue or self.num_working:
                self._request_actors(shared_spec)
                self._submit_chunks()
                done, _ = ray.wait(list(self._calls), num_returns=1, timeout=_POLL_INTERVAL_S)
                for result in done:
                    report = self._receive(result, spec.storage)
                    if report is not None:
                        yield report
                self._poll_cluster()
        finally:
            busy = [call.actor for call in self._calls.values()]
            for actor in [*self._starting, *self._idle, *busy]:
                ray.kill(actor)

    @property
    def num_working(self) -> int:
        """Number of chunks in progress."""
        return sum(call.ref is not None for call in self._calls.values())

    def _request_actors(self, shared_spec: Any) -> None:
        """Request as many actors as are wanted and have a chunk to work on."""
        num_useful = min(self._num_wanted, len(self._queue) + self.num_working)
        num_missing = num_useful - len(self._starting) - len(self._idle) - len(self._calls)
        if self._num_failed_starts < _MAX_FAILED_STARTS:
            self._starting.extend(self._class.remote() for _ in range(num_missing))
        elif not (self._calls or self._idle):
            raise CvbatchError(
                f"{self._num_failed_starts} workers in a row died before they were ready, the "
                f"last: {self._last_cause}; look at Ray's logs, check that every node has this "
                "version of cvbatch and memory for the models, then run again"
            )
        while self._starting:
            actor = self._starting.pop()
            self._calls[actor.load.remote(shared_spec)] = _Call(actor, None)

    def _submit_chunks(self) -> None:
        """Submit chunks to idle actors."""
        while self._queue and self._idle:
            actor, ref = self._idle.pop(), self._queue.popleft()
            is_isolated = self._deaths[ref.chunk_id] >= ISOLATE_AFTER
            self._calls[actor.work.remote(ref, is_isolated=is_isolated)] = _Call(actor, ref)

    def _receive(self, result: Any, storage: Storage) -> ChunkReport | None:
        """Return the report of an actor; None if the actor became ready or died."""
        call = self._calls.pop(result)
        try:
            report: ChunkReport | None = ray.get(result)
        except _DEATHS as error:
            ray.kill(call.actor)  # an actor that is only unreachable must not continue
            self._handle_death(call.ref, _cause(error), storage)
            return None
        self._idle.append(call.actor)
        self._num_failed_starts = 0
        return report

    def _handle_death(self, ref: ChunkRef | None, cause: str, storage: Storage) -> None:
        """Count the death of an actor and return its chunk to the queue."""
        if ref is not None:
            self._deaths[ref.chunk_id] += 1
            if self._deaths[ref.chunk_id] >= MAX_DEATHS:
                raise crashing_chunk_error(storage, ref, cause)
            self._report(f"a worker died, its chunk is processed again: {cause}")
            self._queue.appendleft(ref)
        else:
            self._report(f"a worker died before it was ready, another one is started: {cause}")
            self._num_failed_starts += 1
            self._last_cause = cause

    def _poll_cluster(self) -> None:
        """Want more actors if the cluster has grown; fail if there has been none for long."""
        now = time.monotonic()
        if self.num_working or self._idle:
            self._last_active = now
        if now - self._last_active > _NO_ACTOR_TIMEOUT_S:
            raise CvbatchError(
                f"for {_NO_ACTOR_TIMEOUT_S / 60:g} minutes there was no worker: each needs "
                f"{self._allocation.cpus_per_actor:g} CPU and "
                f"{self._allocation.gpus_per_actor:g} GPU, and the cluster has room for "
                f"{actors_now(self._allocation)}, free or in use; run again when it has free ones"
            )
        if now - self._last_poll > _POLL_INTERVAL_S:
            self._last_poll = now
            self._num_wanted = max(self._num_wanted, actors_now(self._allocation))


def crashing_chunk_error(storage: Storage, ref: ChunkRef, cause: str) -> CvbatchError:
    """Return the error of a chunk that crashes its workers even with isolated decoding."""
    items = read_chunk(storage, ref).items
    return CvbatchError(
        f"chunk {ref.chunk_id} crashed its worker {MAX_DEATHS} times, the last times with its "
        "images decoded in a child process, so the models or reading crash, or memory is too "
        f"small ({cause}). Its images are {items[0].image_id!r} to {items[-1].image_id!r}; look "
        "at Ray's logs, give the workers more memory or remove these images, then run again"
    )


def _cause(error: Exception) -> str:
    """Return the first line of Ray's message; for a constructor that raised, its exception."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[-1] if "creation task" in lines[0] else lines[0]
    return line[:300].rstrip(". ")
