"""Progress listeners: a progress bar on a terminal, plain lines elsewhere, or JSON events."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cvbatch.core.json_log import JsonLog
from cvbatch.core.types import ChunkReport

_REPORT_INTERVAL_S = 5.0  # between plain lines of one phase


class Totals(Protocol):
    """Totals over the chunks that a run has written so far."""

    num_chunks: int
    num_images: int
    num_failed: int  # images
    images_per_second: float


class Listener:
    """Receives the progress of a job; every command uses it. This one ignores everything."""

    def info(self, line: str) -> None:
        """Receive one line of text about the job."""

    def phase(self, name: str, total: int = 0, unit: str = "") -> None:
        """Receive what the job does from now on.

        Args:
            name: such as "compiling 3 models".
            total: amount of work; 0: not known.
            unit: of `total`, in the plural, such as images.
        """

    def advanced(self, count: int) -> None:
        """Receive the amount of work of the phase that is done so far."""

    def listed(self, num_names: int) -> None:
        """Receive the number of file names listed in the source so far."""

    def started(self, num_chunks: int, num_images: int) -> None:
        """Receive the amount of work; `num_images` is 0 if it is unknown before reading."""

    def written(self, report: ChunkReport, totals: Totals) -> None:
        """Receive the report of a chunk after its file is written, and the totals so far."""

    def epoch(self, line: str, row: dict[str, Any]) -> None:
        """Receive the metrics of an epoch, as a line of text and as values."""


@contextmanager
def progress_listener() -> Iterator[Listener]:
    """Yield a listener for stderr: JSON events, a progress bar (terminal) or plain lines."""
    if isinstance(sys.stderr, JsonLog):
        yield _JsonEvents(sys.stderr)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainLines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[details]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _ProgressBar(progress)


class _JsonEvents(Listener):  # chunks and epochs have the counts of `advanced`
    def __init__(self, log: JsonLog) -> None:
        self._log = log
        self._num_chunks = 0

    def info(self, line: str) -> None:
        self._log.write_event("note", line)

    def phase(self, name: str, total: int = 0, unit: str = "") -> None:
        self._log.write_event("phase", name, total=total, unit=unit)

    def listed(self, num_names: int) -> None:
        self._log.write_event("listed", f"listed {num_names:,} names", names=num_names)

    def started(self, num_chunks: int, num_images: int) -> None:
        self._num_chunks = num_chunks
        text = f"{num_chunks:,} chunks{_images(num_images)} to do"
        self._log.write_event("begun", text, chunks=num_chunks, images=num_images)

    def written(self, report: ChunkReport, totals: Totals) -> None:
        self._log.write_event(
            "chunk",
            _written(report, totals, self._num_chunks),
            chunk=report.chunk_id,
            images=report.num_images,
            failed=report.num_failed,
            failures=report.failures,
            bytes=report.num_bytes,
            bytes_read=report.num_bytes_read,
            seconds=report.seconds,
            chunks_done=totals.num_chunks,
            chunks_left=self._num_chunks - totals.num_chunks,
            images_per_second=totals.images_per_second,
        )

    def epoch(self, line: str, row: dict[str, Any]) -> None:
        self._log.write_event("epoch", line, **row)


class _PlainLines(Listener):
    def __init__(self) -> None:
        self._num_chunks = 0
        self._total, self._unit, self._reported_s = 0, "", 0.0

    def info(self, line: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        print(f"{stamp} {line}", file=sys.stderr, flush=True)  # noqa: T201

    def phase(self, name: str, total: int = 0, unit: str = "") -> None:
        self._total, self._unit, self._reported_s = total, unit, time.monotonic()
        self.info(f"{name}, {total:,} {unit}" if total else name)

    def advanced(self, count: int) -> None:
        if time.monotonic() - self._reported_s > _REPORT_INTERVAL_S:
            self._reported_s = time.monotonic()
            self.info(_done(count, self._total, self._unit))

    def listed(self, num_names: int) -> None:
        self.info(f"listed {num_names:,} names")

    def started(self, num_chunks: int, num_images: int) -> None:
        self._num_chunks = num_chunks
        self.info(f"{num_chunks:,} chunks{_images(num_images)} to do")

    def written(self, report: ChunkReport, totals: Totals) -> None:
        self.info(_written(report, totals, self._num_chunks))

    def epoch(self, line: str, row: dict[str, Any]) -> None:
        self.info(line)


class _ProgressBar(Listener):
    """A bar for the phase, and the lines of the job above it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None, details="")
        self._total, self._unit, self._counts_images = 0, "", False

    def info(self, line: str) -> None:
        self._progress.console.print(line, highlight=False)

    def phase(self, name: str, total: int = 0, unit: str = "") -> None:
        self._total, self._unit = total, unit
        self._progress.reset(self._task, description=name, total=total or None, details="")

    def advanced(self, count: int) -> None:
        details = _done(count, self._total, self._unit)
        self._progress.update(self._task, completed=count, details=details)

    def listed(self, num_names: int) -> None:
        self._progress.update(self._task, details=f"{num_names:,} names")

    def started(self, num_chunks: int, num_images: int) -> None:
        self._counts_images = bool(num_images)
        total, unit = (num_images, "images") if num_images else (num_chunks, "chunks")
        self.phase("predicting", total, unit)

    def written(self, report: ChunkReport, totals: Totals) -> None:
        count = totals.num_images if self._counts_images else totals.num_chunks
        failed = f" · {totals.num_failed:,} failed" if totals.num_failed else ""
        done, speed = _done(count, self._total, self._unit), totals.images_per_second
        details = f"{done} · {speed:.0f} images/s{failed}"
        self._progress.update(self._task, completed=count, details=details)

    def epoch(self, line: str, row: dict[str, Any]) -> None:
        self.info(line)
        self.advanced(row["epoch"])


def _done(count: int, total: int, unit: str) -> str:
    """Return how much is done, such as "1,203 / 5,000 images"."""
    return f"{count:,} / {total:,} {unit}" if total else f"{count:,} {unit}"


def _written(report: ChunkReport, totals: Totals, num_chunks: int) -> str:
    return (
        f"chunk {totals.num_chunks}/{num_chunks} {report.chunk_id}: {report.num_images} images, "
        f"{report.num_failed} failed, {report.num_bytes:,} bytes, "
        f"{totals.images_per_second:.1f} images/s"
    )


def _images(num_images: int) -> str:
    return f", {num_images:,} images," if num_images else ""
