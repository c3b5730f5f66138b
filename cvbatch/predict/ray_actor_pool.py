"""The actors of the fused wiring: given chunk after chunk, replaced when they die.

Ray's own pool and restarts would hide what died of which chunk, and wait for actors that do not
come. Here an actor lives once. Its chunk goes back to the front of the queue, another actor is
asked for, and while there is no room for it the others go on. A chunk that keeps taking its
actors down is done carefully (`cvbatch.images.isolated_decode`), and at last stops the job.
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
from cvbatch.core.types import ChunkRef, ChunkReport
from cvbatch.distributed.resources import Allocation
from cvbatch.distributed.session import actors_now
from cvbatch.planning.plan import read_chunk
from cvbatch.predict.steps import FusedWorker, PredictSpec

ISOLATE_AFTER = 2  # deaths of its workers: from then on a chunk is done carefully
MAX_DEATHS = 4  # deaths: two of them of the careful way
_START_LIMIT = 3  # actors that may die in a row before one is ready
_LOOK_S = 5.0  # between two looks at what the cluster has
_PATIENCE_S = 1800.0  # without any actor: a cluster that scales may have to order a machine

# What Ray says of a worker that is gone, with its process, its node, or for want of memory. Our
# own errors come as other types: a job that is wrong is not tried again.
_DEATHS = (
    RayActorError,
    WorkerCrashedError,
    OutOfMemoryError,
    NodeDiedError,
    LocalRayletDiedError,
)


class _Call(NamedTuple):
    """What an actor is busy with: a chunk, or (None) coming up."""

    actor: Any
    ref: ChunkRef | None


class ActorPool:
    """The actors of one job, and who does what.

    Made, it asks for its first actors: they start while the models still build.
    """

    def __init__(self, wiring: Allocation) -> None:
        self._wiring = wiring
        self._class = ray.remote(FusedWorker).options(
            num_cpus=wiring.cpus_per_actor,
            num_gpus=wiring.gpus_per_actor,
            max_restarts=0,
            max_task_retries=0,
        )
        self._wanted = wiring.num_actors
        self._asked = [self._class.remote() for _ in range(wiring.num_actors)]
        self._idle: list[Any] = []
        self._calls: dict[Any, _Call] = {}  # by the reference to the answer
        self._queue: deque[ChunkRef] = deque()
        self._deaths: Counter[str] = Counter()  # by chunk
        self._failed_starts = 0  # since an actor last answered
        self._last_cause = ""
        self._last_life = self._last_look = time.monotonic()

    def run(
        self, refs: Sequence[ChunkRef], order: PredictSpec
    ) -> Generator[ChunkReport, None, None]:
        """Do the chunks; yield each one's report as its file is written. The actors end with it.

        Raises:
            CvbatchError: a chunk keeps taking its worker down, or there are no workers.
            ray.exceptions.RayError: what else stopped an actor.
        """
        self._queue.extend(refs)
        self._last_life = time.monotonic()
        shared = ray.put(order)
        try:
            while self._queue or self.num_working:
                self._ask_for_actors(shared)
                self._hand_out()
                answers, _ = ray.wait(list(self._calls), num_returns=1, timeout=_LOOK_S)
                for answer in answers:
                    report = self._hear(answer)
                    if report is not None:
                        yield report
                self._look_round()
        finally:
            for actor in [
                *self._asked,
                *self._idle,
                *(call.actor for call in self._calls.values()),
            ]:
                ray.kill(actor)

    @property
    def num_working(self) -> int:
        """The chunks that are being worked on."""
        return sum(call.ref is not None for call in self._calls.values())

    def _ask_for_actors(self, shared: Any) -> None:
        """Ask for as many actors as are wanted and could still find a chunk."""
        useful = min(self._wanted, len(self._queue) + self.num_working)
        lacking = useful - len(self._asked) - len(self._idle) - len(self._calls)
        if self._failed_starts >= _START_LIMIT:
            self._go_on_without_new_ones()
        else:
            self._asked.extend(self._class.remote() for _ in range(lacking))
        while self._asked:
            actor = self._asked.pop()
            self._calls[actor.load.remote(shared)] = _Call(actor, None)

    def _go_on_without_new_ones(self) -> None:
        if not (self._calls or self._idle):
            raise CvbatchError(
                f"{self._failed_starts} workers in a row died before they were ready, the last: "
                f"{self._last_cause}; look at Ray's logs, and whether every node has this version "
                "of cvbatch and memory for the models, then run again"
            )

    def _hand_out(self) -> None:
        """Give chunks to the actors that have answered and have none."""
        while self._queue and self._idle:
            actor, ref = self._idle.pop(), self._queue.popleft()
            is_careful = self._deaths[ref.chunk_id] >= ISOLATE_AFTER
            self._calls[actor.work.remote(ref, is_careful=is_careful)] = _Call(actor, ref)

    def _hear(self, answer: Any) -> ChunkReport | None:
        """Return the report that an actor gives; None if it came up, or died."""
        call = self._calls.pop(answer)
        try:
            report: ChunkReport | None = ray.get(answer)
        except _DEATHS as error:
            ray.kill(call.actor)  # one that is only out of reach must not go on beside its heir
            self._bury(call.ref, _cause(error))
            return None
        self._idle.append(call.actor)
        self._failed_starts = 0
        return report

    def _bury(self, ref: ChunkRef | None, cause: str) -> None:
        """Put the chunk of an actor that died back; count the death."""
        if ref is not None:
            self._deaths[ref.chunk_id] += 1
            if self._deaths[ref.chunk_id] >= MAX_DEATHS:
                raise crashing_chunk_error(ref, cause)
            self._queue.appendleft(ref)
        else:
            self._failed_starts += 1
            self._last_cause = cause

    def _look_round(self) -> None:
        """See whether the cluster has grown, and whether there is anyone left."""
        now = time.monotonic()
        if self.num_working or self._idle:
            self._last_life = now
        if now - self._last_life > _PATIENCE_S:
            raise CvbatchError(
                f"for {_PATIENCE_S / 60:g} minutes there was no worker: each asks for "
                f"{self._wiring.cpus_per_actor:g} CPU and {self._wiring.gpus_per_actor:g} GPU, and "
                f"the cluster has room for {actors_now(self._wiring)}, free or taken; run again "
                "when it has some that are free"
            )
        if now - self._last_look > _LOOK_S:
            self._last_look = now
            self._wanted = max(self._wanted, actors_now(self._wiring))


def crashing_chunk_error(ref: ChunkRef, cause: str) -> CvbatchError:
    """Return the error of a chunk that its workers die of, however carefully it is done."""
    items = read_chunk(ref).items
    return CvbatchError(
        f"chunk {ref.chunk_id} took its worker down {MAX_DEATHS} times, at last with its "
        "images decoded in a process of their own, so it is the models or the reading, or there is "
        f"too little memory ({cause}). Its images are {items[0].image_id!r} to "
        f"{items[-1].image_id!r}; look at Ray's logs, give the workers more memory or leave these "
        "images out, then run again"
    )


def _cause(error: Exception) -> str:
    """Return what Ray says first, without its advice; of an actor that raised, what it raised."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[-1] if "creation task" in lines[0] else lines[0]
    return line[:300].rstrip(". ")
