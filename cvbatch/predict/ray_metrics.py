"""Prometheus metrics of a prediction job, exported by the endpoint of every Ray node.

The driver counts from the reports of written chunks: a chunk that was attempted twice counts once,
and Ray stops workers too abruptly for them to export their last counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.util import metrics

from cvbatch.core.types import ChunkReport


@dataclass(frozen=True)
class MetricSpec:
    """One metric. Ray adds the prefix `ray_` to its name, and `_total` to a counter's."""

    kind: type[metrics.Counter] | type[metrics.Gauge]
    description: str
    tag: str = ""  # in addition to `run`, which every metric has


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
        metrics.Gauge,
        "Chunks in a stage or queued for it, when a chunk was last written.",
        "stage",
    ),
}


class RunMetrics:
    """The metrics of one run. Ray must be connected.

    Args:
        run: id of the run, the value of the tag `run`.
        num_chunks: chunks that the run has to write.
    """

    def __init__(self, run: str, num_chunks: int) -> None:
        self._metrics: dict[str, Any] = {}
        for name, spec in METRIC_SPECS.items():
            metric = spec.kind(name, spec.description, ("run", spec.tag) if spec.tag else ("run",))
            metric.set_default_tags({"run": run})
            self._metrics[name] = metric
        self._num_pending = num_chunks
        self._set("cvbatch_chunks_left", num_chunks)

    def add_chunk(self, report: ChunkReport) -> None:
        """Count a written chunk."""
        self._num_pending -= 1
        self._set("cvbatch_chunks_left", self._num_pending)
        self._add("cvbatch_chunks", 1)
        self._add("cvbatch_images", report.num_images - report.num_failed, "ok")
        self._add("cvbatch_images", report.num_failed, "failed")
        self._add("cvbatch_bytes", report.num_bytes_read, "read")
        self._add("cvbatch_bytes", report.num_bytes, "written")
        for kind, count in report.failures.items():
            self._add("cvbatch_failures", count, kind)
        for stage, seconds in report.seconds.items():
            self._add("cvbatch_stage_seconds", seconds, stage)

    def set_queue_depth(self, stage: str, num_chunks: int) -> None:
        """Report the chunks in a stage or queued for it; stage "fused" is all stages in one."""
        self._set("cvbatch_queue_depth", num_chunks, stage)

    def _add(self, name: str, value: float, tag: str = "") -> None:
        if value > 0:  # Ray refuses to add 0
            self._metrics[name].inc(value, self._tags(name, tag))

    def _set(self, name: str, value: float, tag: str = "") -> None:
        self._metrics[name].set(value, self._tags(name, tag))

    def _tags(self, name: str, tag: str) -> dict[str, str]:
        return {METRIC_SPECS[name].tag: tag} if tag else {}
