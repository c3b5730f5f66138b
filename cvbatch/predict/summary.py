"""Summary of a prediction run, and the limit of its failures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cvbatch.core.failures import as_json, is_over_limit, merge_examples
from cvbatch.core.ignored import Ignored
from cvbatch.core.progress import counted
from cvbatch.core.types import ChunkReport, Examples
from cvbatch.planning.plan import Plan

_NOTABLE_EMPTY_FRACTION = 0.05  # of all heatmaps, from which a note suggests another score
_SUGGEST_LOGIT = (
    ": the gradient of a probability near 1 may be 0; heatmap.score: logit explains the value "
    "before the activation"
)
MIN_IMAGES_BEFORE_STOPPING = 200  # images of a run before its failures may stop it


@dataclass
class Summary:
    """What a run did."""

    sink: str
    fingerprint: str
    run: str = ""  # id
    num_new: int = 0  # files of the source that no earlier run planned
    num_changed: int = 0  # files that changed since they were planned; processed again
    num_removed: int = 0  # files that are no longer in the source; their rows stay
    ignored: Ignored = field(default_factory=Ignored)  # of the source; of tars read in this run
    num_chunks: int = 0
    num_chunks_before: int = 0  # done before this run
    num_chunks_left: int = 0  # pending, if the run stopped early
    num_planned: int = 0  # images of the chunks to process; 0 if unknown before reading
    num_images: int = 0
    num_failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # "stage/kind" → images
    examples: Examples = field(default_factory=dict)
    num_heatmaps: int = 0
    num_empty_heatmaps: int = 0  # 0 everywhere
    num_bytes: int = 0  # of the files written
    num_bytes_read: int = 0  # of encoded images
    stage_seconds: dict[str, float] = field(default_factory=dict)  # summed over the workers
    seconds: float = 0.0  # of the run, including start-up
    images_per_second: float = 0.0  # since chunks were submitted, including start-up of workers
    is_over_failure_limit: bool = False
    notes: list[str] = field(default_factory=list)  # warnings about the models
    before: tuple[int, int] | None = None  # images and failures of the last run, if none is pending

    @classmethod
    def of(cls, plan: Plan, sink: str, fingerprint: str, run: str) -> Summary:
        """Return the summary of a run that has not started."""
        ignored = Ignored()
        ignored.merge(plan.ignored.counts, plan.ignored.examples)
        changes = (plan.num_new, plan.num_changed, plan.num_removed)
        return cls(sink, fingerprint, run, *changes, ignored)

    @property
    def is_new(self) -> bool:
        """Return whether anything was predicted."""
        return self.num_chunks > 0

    def add(self, report: ChunkReport) -> None:
        """Count a written chunk."""
        self.num_chunks += 1
        self.num_images += report.num_images
        self.num_failed += report.num_failed
        self.failures.update(report.failures)
        merge_examples(self.examples, report.examples)
        self.ignored.merge(report.ignored, report.ignored_examples)
        self.num_heatmaps += report.num_heatmaps
        self.num_empty_heatmaps += report.num_empty_heatmaps
        self.num_bytes += report.num_bytes
        self.num_bytes_read += report.num_bytes_read
        for stage, seconds in report.seconds.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds

    def empty_heatmaps_note(self, score: str) -> str:
        """Return a note if many heatmaps are empty; else "".

        Args:
            score: the score that they explain, probability or logit.
        """
        if self.num_empty_heatmaps <= _NOTABLE_EMPTY_FRACTION * self.num_heatmaps:
            return ""
        advice = "" if score == "logit" else _SUGGEST_LOGIT
        return (
            f"{self.num_empty_heatmaps:,} of {self.num_heatmaps:,} heatmaps are empty, 0 "
            f"everywhere{advice}"
        )

    def must_stop(self, max_failure_fraction: float) -> bool:
        """Return whether more images have failed than may fail of all planned images."""
        is_known = self.num_planned > 0 and self.num_images >= MIN_IMAGES_BEFORE_STOPPING
        return is_known and self.num_failed > max_failure_fraction * self.num_planned

    def check_failure_limit(self, max_failure_fraction: float) -> None:
        """Set `is_over_failure_limit` from the images of this run.

        If nothing was pending, the last run counts: a job that is repeated until it exits with 0
        must not hide its failures.
        """
        counted = self.before or (self.num_images, self.num_failed)
        self.is_over_failure_limit = is_over_limit(*counted, max_failure_fraction)

    @property
    def changes(self) -> str:
        """Return the numbers of changed, removed and ignored files, as the end of a sentence."""
        text = ""
        if self.num_changed:
            text += f"; {counted(self.num_changed, 'files')} changed, processed again"
        if self.num_removed:
            text += f"; {counted(self.num_removed, 'files')} removed from the source, rows kept"
        if self.ignored:
            text += f"; not read: {self.ignored.counts_text}"
        return text

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        ignored = {"ignored": self.ignored.counts, "ignored_examples": self.ignored.examples}
        return vars(self) | as_json(self.failures, self.examples) | ignored
