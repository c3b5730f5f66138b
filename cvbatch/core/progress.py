"""Progress listeners: a progress bar on a terminal, sparse lines elsewhere, or JSON events."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from cvbatch.core.json_log import JsonLog
from cvbatch.core.types import ChunkReport

if TYPE_CHECKING:
    from rich.progress import Progress

_MIN_INTERVAL_S, _MAX_INTERVAL_S = 10.0, 60.0  # between plain lines of one phase
_SPEED_WINDOW_S = 60.0  # the speed is that of the last minute
_SAMPLE_INTERVAL_S = 0.1  # between two samples of the speed
_MIN_SPAN_S = 1.0  # of samples that give a speed
_UNITS_OF_TIME = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


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
            unit: of the work, in the plural, such as images.
        """

    def advanced(self, count: float, note: str = "") -> None:
        """Receive the amount of work of the phase that is done so far.

        Args:
            count: in the unit of the phase.
            note: replaces the count in the text, such as "epoch 3/40 · loss 0.52".
        """

    def started(self, num_chunks: int, num_images: int) -> None:
        """Receive the amount of work; `num_images` is 0 if it is unknown before reading."""

    def written(self, report: ChunkReport, totals: Totals) -> None:
        """Receive the report of a chunk after its file is written, and the totals so far."""

    def epoch(self, line: str, row: dict[str, Any]) -> None:
        """Receive the metrics of an epoch, as a line of text and as values."""


@contextmanager
def progress_listener() -> Iterator[Listener]:
    """Yield a listener for stderr: JSON events, a progress bar (terminal) or plain lines."""
    from rich.console import Console  # here, because workers import this module too
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    log = sys.stderr if isinstance(sys.stderr, JsonLog) else None
    if log or not Console(stderr=True).is_terminal:
        sparse = _JsonEvents(log) if log else _PlainLines()
        yield sparse
        sparse.finish_phase()
        return
    bar = BarColumn(None, table_column=Column(ratio=1))  # the bar gets the width that is left
    # The text is formatted again and again, so that the time left is true.
    details = TextColumn("{task.fields[meter].text}", markup=False)
    columns = (TextColumn("{task.description}"), bar, details)
    # A descriptor of its own: Ray starts while descriptor 2 is redirected (`silent_stderr`).
    with os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding) as terminal:
        console = Console(file=terminal)
        with Progress(*columns, console=console, transient=True, expand=True) as progress:
            yield _ProgressBar(progress)


class Meter:
    """Work of a phase: what is done, its speed and the time left.

    The speed is that of the last minute. The start of the workers is left out once the work has run
    as long as the start took.

    Args:
        name: of the phase.
        total: amount of work; 0: not known.
        unit: of the work, in the plural.
    """

    def __init__(self, name: str = "starting", total: int = 0, unit: str = "") -> None:
        self.name, self.total, self.unit = name, total, unit
        self.count, self.note = 0.0, ""
        self.started = time.monotonic()
        self._samples = deque([(self.started, 0.0)])

    def advance(self, count: float, note: str = "") -> None:
        """Set what is done so far."""
        self.note = note
        if count <= self.count:
            return
        now, samples = time.monotonic(), self._samples
        self.count = count
        if len(samples) > 1 and now - samples[-2][0] < _SAMPLE_INTERVAL_S:
            samples.pop()
        samples.append((now, count))
        is_start = samples[0][0] == self.started and len(samples) > 2
        if is_start and now - samples[1][0] >= samples[1][0] - self.started:
            samples.popleft()
        while len(samples) > 2 and samples[1][0] < now - _SPEED_WINDOW_S:
            samples.popleft()

    @property
    def speed(self) -> float | None:
        """Work per second; None if less than a second is known."""
        (first, before), (last, done), now = self._samples[0], self._samples[-1], time.monotonic()
        if last == first or now - first < _MIN_SPAN_S:
            return None
        interval = (last - first) / (len(self._samples) - 1)
        if self.count < self.total:  # without a report for longer than usual it is slower
            last = max(last, now - 2 * interval)
        return (done - before) / (last - first)

    @property
    def seconds_left(self) -> float | None:
        """Estimated time to the end of the phase; None if it is not known, or all is done."""
        if not self.speed or self.count >= self.total:
            return None
        since = time.monotonic() - self._samples[-1][0]
        return max(1.0, (self.total - self.count) / self.speed - since)

    @property
    def text(self) -> str:
        """What is done, such as "1,203 / 5,000 images · 212/s · 18 s left".

        Before anything is done, it is the time since the start of the phase.
        """
        seconds = time.monotonic() - self.started
        parts = [self.note or self._count_text(), self._speed_text()]
        if not self.count and seconds >= 1:
            parts.append(duration(seconds))
        if self.seconds_left:
            parts.append(f"{duration(self.seconds_left)} left")
        return " · ".join(filter(None, parts))

    def _count_text(self) -> str:
        if not self.total:
            return counted(int(self.count), self.unit) if self.count else ""
        return f"{int(self.count):,} / {counted(self.total, self.unit)}"

    def _speed_text(self) -> str:
        if not self.speed or not self.total or self.note:
            return ""
        if self.speed < 0.1:
            return f"{self.speed * 60:.1f}/min"
        return f"{self.speed:,.0f}/s" if self.speed >= 10 else f"{self.speed:.1f}/s"


def counted(count: int, unit: str) -> str:
    """Return a number with its unit, such as "1 image" or "5,000 images"; unit: in the plural."""
    return f"{count:,} {unit.removesuffix('s') if count == 1 else unit}"


def duration(seconds: float) -> str:
    """Return a time in one or two units, such as "18 s", "3 min 20 s" or "2 h"."""
    whole = round(seconds)
    for size, name, smaller, smaller_name in _UNITS_OF_TIME:
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"


class _Measured(Listener):
    """A listener with a meter for the phase; `_show` is called when the meter has changed."""

    def __init__(self) -> None:
        self._meter = Meter()
        self._counts_images = False

    def _show(self) -> None:
        raise NotImplementedError

    def phase(self, name: str, total: int = 0, unit: str = "") -> None:
        self._meter = Meter(name, total, unit)

    def advanced(self, count: float, note: str = "") -> None:
        self._meter.advance(count, note)
        self._show()

    def started(self, num_chunks: int, num_images: int) -> None:
        self._counts_images = bool(num_images)
        total, unit = (num_images, "images") if num_images else (num_chunks, "files")
        self.phase("predicting", total, unit)

    def written(self, report: ChunkReport, totals: Totals) -> None:
        count = totals.num_images if self._counts_images else totals.num_chunks
        self.advanced(count)

    def epoch(self, line: str, row: dict[str, Any]) -> None:
        self.info(line)
        self.advanced(row["epoch"])


class _Sparse(_Measured):
    """Shows progress after 10 seconds of a phase, later once a minute, and at its end."""

    def __init__(self) -> None:
        super().__init__()
        self._shown_s, self._is_shown = time.monotonic(), True

    def _write(self) -> None:
        raise NotImplementedError

    def phase(self, name: str, total: int = 0, unit: str = "") -> None:
        self.finish_phase()
        super().phase(name, total, unit)
        self._shown_s = self._meter.started

    def _show(self) -> None:
        now = time.monotonic()
        interval = min(max((now - self._meter.started) / 4, _MIN_INTERVAL_S), _MAX_INTERVAL_S)
        self._is_shown = now - self._shown_s >= interval
        if self._is_shown:
            self._shown_s = now
            self._write()

    def finish_phase(self) -> None:
        """Show the last state of the phase, unless it is shown."""
        if not self._is_shown:
            self._is_shown = True
            self._write()


class _JsonEvents(_Sparse):
    def __init__(self, log: JsonLog) -> None:
        super().__init__()
        self._log = log
        self._num_chunks = 0

    def info(self, line: str) -> None:
        self._log.write_event("note", line)

    def phase(self, name: str, total: int = 0, unit: str = "") -> None:
        super().phase(name, total, unit)
        self._log.write_event("phase", name, total=total, unit=unit)

    def _write(self) -> None:
        meter = self._meter
        if meter.unit == "files":
            names = int(meter.count)
            self._log.write_event("listed", f"listed {counted(names, 'files')}", names=names)
            return
        self._log.write_event(
            "progress",
            f"{meter.name}: {meter.text}",
            done=meter.count,
            total=meter.total,
            unit=meter.unit,
            per_second=meter.speed,
            seconds_left=meter.seconds_left,
        )

    def started(self, num_chunks: int, num_images: int) -> None:
        self.finish_phase()
        self._num_chunks = num_chunks
        images = f", {counted(num_images, 'images')}" if num_images else ""
        text = f"{counted(num_chunks, 'chunks')}{images} to do"
        self._log.write_event("begun", text, chunks=num_chunks, images=num_images)

    def written(self, report: ChunkReport, totals: Totals) -> None:
        self._log.write_event(
            "chunk",
            f"chunk {totals.num_chunks}/{self._num_chunks} {report.chunk_id}: "
            f"{counted(report.num_images, 'images')}, {report.num_failed} failed, "
            f"{report.num_bytes:,} bytes, {totals.images_per_second:.1f} images/s",
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


class _PlainLines(_Sparse):
    def info(self, line: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        print(f"{stamp} {line}", file=sys.stderr, flush=True)  # noqa: T201

    def phase(self, name: str, total: int = 0, unit: str = "") -> None:
        super().phase(name, total, unit)
        self.info(f"{name}, {counted(total, unit)}" if total else name)

    def _write(self) -> None:
        self.info(f"{self._meter.name}: {self._meter.text}")

    def epoch(self, line: str, row: dict[str, Any]) -> None:
        self.info(line)
        self._meter.advance(row["epoch"])
        self._is_shown = True


class _ProgressBar(_Measured):
    """A bar for the phase, and the lines of the job above it."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._task = progress.add_task(self._meter.name, total=None, meter=self._meter)

    def info(self, line: str) -> None:
        self._progress.console.print(line, highlight=False)

    def phase(self, name: str, total: int = 0, unit: str = "") -> None:
        super().phase(name, total, unit)
        self._progress.reset(self._task, description=name, total=total or None, meter=self._meter)

    def _show(self) -> None:
        self._progress.update(self._task, completed=self._meter.count)
