"""Parallel map over independent items: in this process, in child processes, or on Ray.

Starting a local Ray takes longer than many of these calls, so Ray is used only if the process has
joined a cluster, or if the calls need GPUs.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from cvbatch.core.child_process import exit_with_parent
from cvbatch.core.errors import CvbatchError
from cvbatch.core.progress import Listener
from cvbatch.distributed.session import joins_a_cluster

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")
_REPORT_INTERVAL_S = 5.0
_MAX_RESTARTS = 3  # of one worker on Ray, and of one item


def stateless(
    call: Callable[[Shared, Item], Result],
) -> Callable[[Shared], Callable[[Item], Result]]:
    """Return the `begin` of `ParallelMap.run` for a call that keeps nothing between items."""
    return partial(partial, call)


class _Worker(Generic[Shared, Item, Result]):
    """Calls the function for one item after the other; what it has loaded stays loaded."""

    def __init__(
        self,
        begin: Callable[[Shared], Callable[[Item], Result]],
        shared: Shared,
    ) -> None:
        self.begin, self.shared = begin, shared

    @cached_property
    def _call(self) -> Callable[[Item], Result]:
        return self.begin(self.shared)

    def is_ready(self) -> bool:
        """Return True: the process runs."""
        return True

    def call(self, item: Item) -> Result:
        """Return the result of one item."""
        return self._call(item)


@dataclass(frozen=True)
class ParallelMap:
    """Workers for independent calls.

    Args:
        workers: how many; 1 outside a cluster is this process.
        listener: receives a line every few seconds.
        gpus: of each worker; only Ray can assign them.
    """

    workers: int
    listener: Listener
    gpus: float = 0.0

    @property
    def needs_ray(self) -> bool:
        """Say whether Ray must be connected before `run`."""
        return joins_a_cluster() or self.gpus > 0

    def run(
        self,
        begin: Callable[[Shared], Callable[[Item], Result]],
        shared: Shared,
        items: Sequence[Item],
        what: str,
    ) -> Iterator[Result]:
        """Yield the result of every item, in any order.

        Args:
            begin: called once by each worker with `shared`; returns the function of one item. It
                and `shared` must be picklable.
            shared: what all items need; sent once to each worker.
            items: what is mapped.
            what: the items' name in progress lines, in the plural.

        Raises:
            CvbatchError: what a call raised, or a worker died.
        """
        last = time.monotonic()
        worker = _Worker(begin, shared)
        for number, result in enumerate(self._results(worker, items), 1):
            yield result
            if time.monotonic() - last > _REPORT_INTERVAL_S:
                last = time.monotonic()
                self.listener.info(f"{number:,} of {len(items):,} {what}")

    def _results(
        self, worker: _Worker[Shared, Item, Result], items: Sequence[Item]
    ) -> Iterator[Result]:
        if self.needs_ray:
            return self._on_ray(worker, items)
        if self.workers > 1:
            return self._in_processes(worker, items)
        return map(worker.call, items)

    def _in_processes(
        self, worker: _Worker[Shared, Item, Result], items: Sequence[Item]
    ) -> Generator[Result, None, None]:
        pending = list(reversed(items))
        processes = [_Process(worker) for _ in range(min(self.workers, len(items)))]
        by_pipe = {process.pipe: process for process in processes}
        try:
            for process in processes:
                process.send(pending.pop())
            while by_pipe:
                for pipe in wait(list(by_pipe)):
                    process = by_pipe[pipe]  # type: ignore[index]  # these are connections
                    yield process.receive()
                    if pending:
                        process.send(pending.pop())
                    else:
                        del by_pipe[process.pipe]
        finally:
            for process in processes:
                process.end()

    def _on_ray(
        self, worker: _Worker[Shared, Item, Result], items: Sequence[Item]
    ) -> Generator[Result, None, None]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        pending = list(reversed(items))
        make = ray.remote(_Worker).options(
            num_cpus=1,
            num_gpus=self.gpus,
            max_restarts=_MAX_RESTARTS,
            max_task_retries=_MAX_RESTARTS,
        )
        arguments = worker.begin, ray.put(worker.shared)
        actors = [make.remote(*arguments) for _ in range(min(self.workers, len(items)))]
        # An actor gets items once it runs: a full cluster may never start all of them.
        starting = {actor.is_ready.remote(): actor for actor in actors}
        busy: dict[Any, Any] = {}
        try:
            while pending or busy:
                (ref,), _ = ray.wait([*busy, *starting])
                if ref in starting:
                    ray.get(ref)
                    actor = starting.pop(ref)
                else:
                    actor = busy.pop(ref)
                    yield ray.get(ref)
                if pending:
                    busy[actor.call.remote(pending.pop())] = actor
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise CvbatchError(f"a worker was lost repeatedly ({str(error)[:200]})") from None
        finally:
            for actor in actors:
                ray.kill(actor)


class _Process(Generic[Shared, Item, Result]):
    """A child process with a worker in it."""

    def __init__(self, worker: _Worker[Shared, Item, Result]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(worker, theirs), daemon=True)
        # Ctrl-C reaches all processes of a terminal; only this one handles it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that the end of the process is the end of the pipe

    def send(self, item: Item) -> None:
        """Let the worker work on an item."""
        try:
            self.pipe.send(item)
        except OSError:
            raise self._death() from None

    def receive(self) -> Result:
        """Return the result of the item sent before; raise what its call raised."""
        try:
            result, error = self.pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if error is not None:
            raise error
        value: Result = result
        return value

    @staticmethod
    def _death() -> CvbatchError:
        return CvbatchError("a worker died, most likely because memory ran out")

    def end(self) -> None:
        """End the process, whatever it does."""
        self.pipe.close()
        self._process.terminate()
        self._process.join()


def _serve(worker: _Worker[Any, Any, Any], pipe: Connection) -> None:
    """Call the function for each item received, until the other side closes the pipe."""
    threading.Thread(target=exit_with_parent, daemon=True).start()
    outcome: tuple[Any, Exception | None]
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            outcome = worker.call(item), None
        except Exception as error:  # noqa: BLE001 - raised again by the parent
            outcome = None, error
        pipe.send(outcome)
