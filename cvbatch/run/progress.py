"""Tells a person how a job goes on: bars on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cvbatch.run.prediction import Listener
from cvbatch.run.summary import Summary
from cvbatch.worker import PartReport


@contextmanager
def listening() -> Iterator[Listener]:
    """Yield a listener that writes to stderr, in the form that suits it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("chunks"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress)


class _Lines:
    def __init__(self) -> None:
        self._num_chunks = 0

    def say(self, line: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        print(f"{stamp} {line}", file=sys.stderr, flush=True)  # noqa: T201

    def listed(self, num_names: int) -> None:
        self.say(f"listed {num_names:,} names")

    def begun(self, num_chunks: int, num_images: int) -> None:
        self._num_chunks = num_chunks
        self.say(f"{num_chunks:,} chunks{_images(num_images)} to do")

    def written(self, report: PartReport, summary: Summary) -> None:
        self.say(
            f"chunk {summary.num_chunks}/{self._num_chunks} {report.chunk_id}: "
            f"{report.num_images} images, {report.num_failed} failed, {report.num_bytes:,} bytes, "
            f"{summary.images_per_second:.1f} images/s"
        )


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("listing", total=None, told="")

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False)

    def listed(self, num_names: int) -> None:
        self._progress.update(self._task, told=f"{num_names:,} names")

    def begun(self, num_chunks: int, num_images: int) -> None:
        self._progress.update(
            self._task, description="predicting", total=num_chunks, told=_images(num_images)
        )

    def written(self, report: PartReport, summary: Summary) -> None:
        told = f"{summary.images_per_second:.1f} images/s, {summary.num_failed:,} failed"
        self._progress.update(self._task, advance=1, told=told)


def _images(num_images: int) -> str:
    return f", {num_images:,} images," if num_images else ""
