"""Parallel map over independent items: in this process, in child processes, or on Ray.

Starting a local Ray takes longer than many of these calls, so Ray is used only if the process has
joined a cluster, or if the calls need GPUs.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
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
_MAX_RESTARTS = 3  # of a worker on Ray, and of an item


def stateless(
    call: Callable[[Shared, Item], Result],
) -> Callable[[Shared], Callable[[Item], Result]]:
    """Return the argument `begin` of `ParallelMap.run` for a function without state."""
    return partial(partial, call)


class _Worker(Generic[Shared, Item, Result]):
    """Calls `begin` once and its result for every item, so that loaded data are reused."""

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
        """Return True, which shows that the process runs."""
        return True

    def call(self, item: Item) -> Result:
        """Return the result for an item."""
        return self._call(item)


@dataclass(frozen=True)
class ParallelMap:
    """Workers for independent calls.

    Args:
        workers: number of workers; 1 without a cluster means this process.
        listener: receives the amount of work that is done.
        gpus: number of GPUs per worker; only Ray can assign them.
    """

    workers: int
    listener: Listener
    gpus: float = 0.0

    @property
    def needs_ray(self) -> bool:
        """Return whether Ray must be connected before `run`."""
        return joins_a_cluster() or self.gpus > 0

    def run(
        self,
        begin: Callable[[Shared], Callable[[Item], Result]],
        shared: Shared,
        items: Sequence[Item],
        size: Callable[[Result], int] = lambda _: 1,
    ) -> Iterator[Result]:
        """Yield the results of all items, in any order.

        Args:
            begin: called once by each worker with `shared`; returns the function that is called for
                every item. `begin`, `shared`, items and results must be picklable.
            shared: data for all items; sent once to each worker.
            items: the arguments of the calls.
            size: returns how much work a result is, in the unit of the phase.

        Raises:
            CvbatchError: a call raised it, or a worker died.
        """
        worker = _Worker(begin, shared)
        done = 0
        for result in self._results(worker, items):
            yield result
            done += size(result)
            self.listener.advanced(done)

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
        # Actors get items only when they run, because a full cluster may never start all of them.
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
            for ref in starting:
                ray.cancel(ref)  # or Ray may print that it will try again
            for actor in actors:
                ray.kill(actor)


class _Process(Generic[Shared, Item, Result]):
    """A child process that runs a worker."""

    def __init__(self, worker: _Worker[Shared, Item, Result]) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy locks that threads hold
        self.pipe, child_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(worker, child_end), daemon=True)
        # Ctrl-C reaches all processes of a terminal; only this one handles it.
        signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
        child_end.close()  # so that the death of the process closes the pipe

    def send(self, item: Item) -> None:
        """Send an item to the worker."""
        try:
            self.pipe.send(item)
        except OSError:
            raise self._death_error() from None

    def receive(self) -> Result:
        """Return the result of the last item; raise the exception of its call."""
        try:
            result, error = self.pipe.recv()
        except (EOFError, OSError):
            raise self._death_error() from None
        if error is not None:
            raise error
        value: Result = result
        return value

    @staticmethod
    def _death_error() -> CvbatchError:
        return CvbatchError("a worker died, probably because memory ran out")

    def end(self) -> None:
        """Terminate the process."""
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
