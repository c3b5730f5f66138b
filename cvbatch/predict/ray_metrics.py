"""What a prediction job tells Prometheus, by the endpoint that every Ray node has.

The driver counts, from the reports of chunks whose files are written: a chunk that was begun again
counts once, and Ray ends workers too abruptly for them to hand in their last counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.util import metrics

from cvbatch.core.types import ChunkReport


@dataclass(frozen=True)
class MetricSpec:
    """One metric; Ray puts `ray_` before its name, and `_total` after a counter's."""

    kind: type[metrics.Counter] | type[metrics.Gauge]
    description: str
    tag: str = ""  # beside `run`, which all have


METRIC_SPECS = {
    "cvbatch_images": MetricSpec(
        metrics.Counter, "Rows written, by status: ok or failed.", "status"
    ),
    "cvbatch_failures": MetricSpec(
        metrics.Counter, "Failed rows, by stage/kind of failure.", "kind"
    ),
    "cvbatch_bytes": MetricSpec(
        metrics.Counter, "Encoded images read, files written.", "direction"
    ),
    "cvbatch_stage_seconds": MetricSpec(
        metrics.Counter, "Seconds that chunks took, summed over workers, by stage.", "stage"
    ),
    "cvbatch_chunks": MetricSpec(metrics.Counter, "Chunks written."),
    "cvbatch_chunks_left": MetricSpec(metrics.Gauge, "Chunks that are not written yet."),
    "cvbatch_queue_depth": MetricSpec(
        metrics.Gauge, "Chunks in a stage or waiting for it, when one was last written.", "stage"
    ),
}


class RunMetrics:
    """The metrics of one run. Ray must be connected."""

    def __init__(self, run: str, num_chunks: int) -> None:
        self._all: dict[str, Any] = {}
        for name, meter in METRIC_SPECS.items():
            made = meter.kind(
                name, meter.description, ("run", meter.tag) if meter.tag else ("run",)
            )
            made.set_default_tags({"run": run})
            self._all[name] = made
        self._num_left = num_chunks
        self._set("cvbatch_chunks_left", num_chunks)

    def written(self, report: ChunkReport) -> None:
        """Count a chunk in whose file is there."""
        self._num_left -= 1
        self._set("cvbatch_chunks_left", self._num_left)
        self._add("cvbatch_chunks", 1)
        self._add("cvbatch_images", report.num_images - report.num_failed, "ok")
        self._add("cvbatch_images", report.num_failed, "failed")
        self._add("cvbatch_bytes", report.num_bytes_read, "read")
        self._add("cvbatch_bytes", report.num_bytes, "written")
        for kind, count in report.failures.items():
            self._add("cvbatch_failures", count, kind)
        for stage, seconds in report.seconds.items():
            self._add("cvbatch_stage_seconds", seconds, stage)

    def waiting(self, stage: str, num_chunks: int) -> None:
        """Say how many chunks are in a stage, or wait for it; "fused" is all of them in one."""
        self._set("cvbatch_queue_depth", num_chunks, stage)

    def _add(self, name: str, value: float, tag: str = "") -> None:
        if value > 0:  # Ray refuses to add nothing
            self._all[name].inc(value, self._tags(name, tag))

    def _set(self, name: str, value: float, tag: str = "") -> None:
        self._all[name].set(value, self._tags(name, tag))

    def _tags(self, name: str, tag: str) -> dict[str, str]:
        return {METRIC_SPECS[name].tag: tag} if tag else {}
