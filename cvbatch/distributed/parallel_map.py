"""Calls that know nothing of each other: done here, by processes of this machine, or by Ray.

A Ray of one machine takes longer to start than many a table of scores takes to form, so only a
cluster that is joined is asked for tasks, or one with GPUs to share out.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from cvbatch.core.child_process import end_with_parent
from cvbatch.core.errors import CvbatchError
from cvbatch.core.progress import Listener
from cvbatch.core.types import RetryPolicy
from cvbatch.distributed.session import joins_a_cluster
from cvbatch.storage import store

Held = TypeVar("Held")
Item = TypeVar("Item")
Given = TypeVar("Given")
_AHEAD = 2  # items a task has before it
_TOLD_S = 5.0


@dataclass(frozen=True)
class Work:
    """Calls laid on some workers."""

    workers: int
    retry_policy: RetryPolicy
    listener: Listener
    gpus: float = 0.0  # of each call; only Ray can lay them out

    @property
    def needs_ray(self) -> bool:
        """Say whether Ray has to be there before the calls are made."""
        return joins_a_cluster() or self.gpus > 0

    def of(
        self, call: Callable[[Held, Item], Given], held: Held, items: Sequence[Item], what: str
    ) -> Iterator[Given]:
        """Yield `call(held, item)` of every item, in any order; `held` is sent once.

        what: many calls come to, for who listens.

        Raises:
            CvbatchError: what a call raised; or a worker was lost.
        """
        told = time.monotonic()
        for number, answer in enumerate(self._answers(call, held, items), 1):
            yield answer
            if time.monotonic() - told > _TOLD_S:
                told = time.monotonic()
                self.listener.say(f"{number:,} of {len(items):,} {what}")

    def _answers(
        self, call: Callable[[Held, Item], Given], held: Held, items: Sequence[Item]
    ) -> Iterator[Given]:
        if self.needs_ray:
            return self._on_ray(call, held, items)
        if self.workers > 1:
            return self._in_processes(call, held, items)
        return (call(held, item) for item in items)

    def _in_processes(
        self, call: Callable[[Held, Item], Given], held: Held, items: Sequence[Item]
    ) -> Generator[Given, None, None]:
        pool = ProcessPoolExecutor(
            self.workers,
            multiprocessing.get_context("spawn"),  # a fork would copy locks that threads hold
            _Here.begin,
            (call, held, self.retry_policy),
        )
        # Ctrl-C goes to all processes of a terminal: it is for this one to hear.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            answers = deque(pool.submit(_Here.answer, item) for item in items)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            while answers:
                yield answers.popleft().result()  # let go of, once it was given
        except BrokenProcessPool:
            raise CvbatchError("a worker died, most likely for want of memory") from None
        finally:
            pool.shutdown(cancel_futures=True)

    def _on_ray(
        self, call: Callable[[Held, Item], Given], held: Held, items: Sequence[Item]
    ) -> Generator[Given, None, None]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        task = ray.remote(_there).options(num_cpus=1, num_gpus=self.gpus, max_retries=3)
        shared = ray.put(held)
        left = list(reversed(items))
        busy: list[Any] = []
        try:
            while left or busy:
                while left and len(busy) < self.workers * _AHEAD:
                    busy.append(task.remote(call, self.retry_policy, shared, left.pop()))
                ready, busy = ray.wait(busy)
                yield from ray.get(ready)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            told = str(error)[:200]
            raise CvbatchError(f"a worker was lost again and again ({told})") from None


class _Here:
    """What a process of this machine was made for."""

    call: ClassVar[Callable[[Any, Any], Any]]
    held: ClassVar[Any]

    @classmethod
    def begin(cls, call: Callable[[Any, Any], Any], held: Any, policy: RetryPolicy) -> None:
        threading.Thread(target=end_with_parent, daemon=True).start()
        store.set_retry_policy(policy)
        cls.call, cls.held = staticmethod(call), held

    @classmethod
    def answer(cls, item: Any) -> Any:
        return cls.call(cls.held, item)


def _there(
    call: Callable[[Held, Item], Given], policy: RetryPolicy, held: Held, item: Item
) -> Given:
    store.set_retry_policy(policy)
    return call(held, item)
