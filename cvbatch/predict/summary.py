"""What a run did, and whether it still can keep the failures it is allowed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cvbatch.core.failures import are_too_many, as_json, merge
from cvbatch.core.types import ChunkReport, Examples
from cvbatch.planning.plan import Plan

MIN_IMAGES_BEFORE_STOPPING = 200  # images of a run, before its failures may stop it


@dataclass
class Summary:
    """What a run did."""

    sink: str
    fingerprint: str
    run: str = ""  # its id
    num_new: int = 0  # files of the source that no earlier run knew
    num_changed: int = 0  # files that had changed since they were planned; done again
    num_removed: int = 0  # files that are not in the source any more; their rows stay
    num_chunks: int = 0
    num_chunks_before: int = 0  # were done before this run
    num_chunks_left: int = 0  # where the run stopped early
    num_planned: int = 0  # images that this run was to do; 0 where only reading tells
    num_images: int = 0
    num_failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # "stage/kind" → images
    examples: Examples = field(default_factory=dict)
    num_bytes: int = 0  # of the files written
    num_bytes_read: int = 0  # of encoded images
    stage_seconds: dict[str, float] = field(default_factory=dict)  # summed over the workers
    seconds: float = 0.0  # start-up in
    images_per_second: float = 0.0  # while chunks were worked on, the workers' start-up in
    is_over_failure_limit: bool = False
    before: tuple[int, int] | None = None  # images and failures of the run that left nothing to do

    @classmethod
    def of(cls, plan: Plan, sink: str, fingerprint: str, run: str) -> Summary:
        """Return the summary of a run that has done nothing yet."""
        return cls(sink, fingerprint, run, plan.num_new, plan.num_changed, plan.num_removed)

    def add(self, report: ChunkReport) -> None:
        """Count a chunk in."""
        self.num_chunks += 1
        self.num_images += report.num_images
        self.num_failed += report.num_failed
        self.failures.update(report.failures)
        merge(self.examples, report.examples)
        self.num_bytes += report.num_bytes
        self.num_bytes_read += report.num_bytes_read
        for stage, seconds in report.seconds.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds

    def is_beyond_hope(self, max_failure_fraction: float) -> bool:
        """Say whether more images have failed already than may fail of all that are planned."""
        is_known = self.num_planned > 0 and self.num_images >= MIN_IMAGES_BEFORE_STOPPING
        return is_known and self.num_failed > max_failure_fraction * self.num_planned

    def judge(self, max_failure_fraction: float) -> None:
        """Say whether too many failed: of this run's images, or where there were none to do, of the
        last run's. A job that is tried again until it ends with 0 would hide them otherwise.
        """
        counted = self.before or (self.num_images, self.num_failed)
        self.is_over_failure_limit = are_too_many(*counted, max_failure_fraction)

    @property
    def changes(self) -> str:
        """Return what became of files that earlier runs knew, as the end of a sentence."""
        told = ""
        if self.num_changed:
            told += f"; {_files(self.num_changed)} had changed and were done again"
        if self.num_removed:
            told += f"; {_files(self.num_removed)} gone from the source, their rows stay"
        return told

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return vars(self) | as_json(self.failures, self.examples)


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"
