"""Class and score statistics of a result, and the choice of the rows for the gallery.

Only columns of classes and scores are read: no mask, no heatmap, no image. Of a large result a
sample of the part files is read, at equal distances. The choice of rows depends only on their
positions, so the same result gives the same page.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import SourceError
from cvbatch.core.progress import Listener
from cvbatch.core.types import ChunkRef
from cvbatch.report.columns import COLUMN_PAGES, ColumnPage
from cvbatch.results.result import Result

MAX_FILES = 2048
MAX_ROWS = 1 << 20
MAX_LEAST_CONFIDENT = 16  # rows
NUM_RANDOM = 300  # rows of a random sample
MAX_COMPLETE = 400  # rows of a result of which all are sampled
SEED = 0  # of the random choices
ROWS_PER_CLASS = 6
MAX_EXAMPLES = 4  # of images for each kind of failure
NUM_BINS = 20
_THREADS = 16  # for reading part files
_BATCH_ROWS = 8192


class RowRef(NamedTuple):
    """A row of a result."""

    ref: ChunkRef
    row: int  # index in the part file


class _RankedRows(NamedTuple):
    """Rows with a group and a rank each, of which the lowest ranks of each group are kept."""

    group: np.ndarray  # (n,) int64
    rank: np.ndarray  # (n,) float64
    file: np.ndarray  # (n,) int64 index into the sampled chunks
    row: np.ndarray  # (n,) int64 index in the part file

    @classmethod
    def of(cls, group: Any, rank: np.ndarray, file: int, row: np.ndarray) -> _RankedRows:
        """Return rows of one file; group: of each row, or one for all."""
        return cls(np.broadcast_to(group, row.shape), rank, np.full(row.shape, file), row)

    def lowest(self, other: _RankedRows, count: int) -> _RankedRows:
        """Merge both; return the `count` rows of the lowest ranks of each group."""
        rows = _RankedRows(*map(np.concatenate, zip(self, other, strict=True)))
        order = np.lexsort((rows.row, rows.file, rows.rank, rows.group))
        _, start, size = np.unique(rows.group[order], return_index=True, return_counts=True)
        rank_in_group = np.arange(len(order)) - np.repeat(start, size)
        chosen = order[rank_in_group < count]
        return _RankedRows(*(column[chosen] for column in rows))


_NO_ROWS = _RankedRows.of(0, np.zeros(0), 0, np.zeros(0, np.int64))


def _counters() -> dict[str, Counter[int]]:
    return defaultdict(Counter)


@dataclass
class Statistics:
    """Counts over a result, and the rows chosen for the gallery."""

    sampled: list[ChunkRef]  # the chunks whose rows are counted
    num_chunks: int = 0  # of the whole result
    num_rows: int = 0
    num_failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # "stage/kind" → rows
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # → image_id, message
    num_images: dict[str, Counter[int]] = field(default_factory=_counters)  # column → class → rows
    num_elements: dict[str, Counter[int]] = field(default_factory=_counters)
    score_bins: dict[str, Counter[int]] = field(default_factory=_counters)  # column → bin → scores
    score_range: tuple[float, float] = (0.0, 1.0)
    class_samples: dict[str, _RankedRows] = field(
        default_factory=lambda: defaultdict(lambda: _NO_ROWS)
    )
    least_confident: _RankedRows = _NO_ROWS
    random: _RankedRows = _NO_ROWS

    @property
    def is_complete(self) -> bool:
        """Return whether every row was counted, not a sample."""
        return self.num_chunks == len(self.sampled)

    def rows_of_class(self, column: str) -> dict[int, list[RowRef]]:
        """Return for each class some rows that contain it, spread over the result.

        Args:
            column: "labels", "boxes" or "mask_areas".
        """
        row_refs: dict[int, list[RowRef]] = defaultdict(list)
        rows = self.class_samples[column]
        for class_id, row_ref in zip(rows.group.tolist(), self._row_refs(rows), strict=True):
            row_refs[class_id].append(row_ref)
        return row_refs

    def scores_below(self, column: str, limit: float) -> tuple[int, int]:
        """Return how many scores of a column are below a limit, and how many there are.

        Args:
            column: "labels" or "boxes".
            limit: a multiple of 1 / NUM_BINS.
        """
        bins = self.score_bins[column]
        num_below = sum(count for i, count in bins.items() if i < round(limit * NUM_BINS))
        return num_below, bins.total()

    def least_confident_rows(self) -> list[RowRef]:
        """Return the rows with the lowest best scores, lowest first."""
        return self._row_refs(self.least_confident)

    def random_rows(self) -> list[RowRef]:
        """Return all rows of a result of at most `MAX_COMPLETE`, else `NUM_RANDOM` random ones."""
        count = MAX_COMPLETE if self.num_rows <= MAX_COMPLETE else NUM_RANDOM
        return self._row_refs(self.random)[:count]

    def _row_refs(self, rows: _RankedRows) -> list[RowRef]:
        pairs = zip(rows.file.tolist(), rows.row.tolist(), strict=True)
        return [RowRef(self.sampled[file], row) for file, row in pairs]

    def add(self, other: Statistics) -> None:
        """Add the counts of another part file."""
        self.num_rows += other.num_rows
        self.num_failed += other.num_failed
        self.failures.update(other.failures)
        for kind, examples in other.examples.items():
            self.examples[kind] = (self.examples.get(kind, []) + examples)[:MAX_EXAMPLES]
        for name in ("num_images", "num_elements", "score_bins"):
            for column, counts in getattr(other, name).items():
                getattr(self, name)[column].update(counts)
        low, high = other.score_range
        self.score_range = min(low, self.score_range[0]), max(high, self.score_range[1])
        for column, rows in other.class_samples.items():
            self.class_samples[column] = self.class_samples[column].lowest(rows, ROWS_PER_CLASS)
        rows = other.least_confident
        self.least_confident = self.least_confident.lowest(rows, MAX_LEAST_CONFIDENT)
        self.random = self.random.lowest(other.random, MAX_COMPLETE)


def collect_statistics(result: Result, listener: Listener | None = None) -> Statistics:
    """Return the statistics of a result; of a large one, those of a sample of its part files.

    Args:
        result: the prediction.
        listener: receives the progress; None: nothing does.

    Raises:
        SourceError: a part file is damaged, of another schema version, or of another job.
    """
    total = Statistics(_sample(result.done), len(result.done))
    leaves = [
        f"{page.counted_column}.list.element.{leaf}"
        for page in COLUMN_PAGES.values()
        if page.counted_column in result.footer.columns
        for leaf in (("class_id", "score") if page.score_title else ("class_id",))
    ]
    listener = listener or Listener()
    num_images = sum(ref.num_images for ref in total.sampled)
    listener.phase("reading predictions", num_images, "images")
    with ThreadPoolExecutor(_THREADS) as pool:
        counted = pool.map(lambda item: _count(result, leaves, *item), enumerate(total.sampled))
        for stats in counted:
            total.add(stats)
            listener.advanced(total.num_rows)
    return total


def _sample(done: Sequence[ChunkRef]) -> list[ChunkRef]:
    """Return the chunks to count: all, or a sample at equal distances."""
    count = min(len(done), MAX_FILES)
    rows = sum(max(ref.num_images, 1) for ref in done)
    if rows > MAX_ROWS:
        count = max(1, min(count, len(done) * MAX_ROWS // rows))
    return [done[i] for i in equally_spaced(len(done), count)]


def equally_spaced(num_items: int, count: int) -> list[int]:
    """Return the indices of `count` items at equal distances, or of all if there are fewer."""
    spaced = np.linspace(0, max(num_items - 1, 0), min(count, num_items))
    indices: list[int] = spaced.round().astype(int).tolist()
    return indices


def _count(result: Result, leaves: Sequence[str], file: int, ref: ChunkRef) -> Statistics:
    """Return the statistics of one chunk; file: its index into the sampled chunks."""
    stats = Statistics([])
    columns = ["status", "error.stage", "error.kind", *leaves]
    with damage_reported(result, ref):
        for batch in result.batches(ref, columns, _BATCH_ROWS):
            _count_batch(stats, batch, file)
            rows = stats.num_rows + np.arange(batch.num_rows)
            ranked = _RankedRows.of(0, _pseudo_random(file, rows), file, rows)
            stats.random = stats.random.lowest(ranked, MAX_COMPLETE)
            stats.num_rows += batch.num_rows
        if stats.num_failed:
            _record_examples(stats, result, ref)
    return stats


@contextmanager
def damage_reported(result: Result, ref: ChunkRef) -> Iterator[None]:
    """Raise SourceError for errors of rows that are not as cvbatch writes them."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise SourceError(
            f"{result.uri_of(ref)} has rows that cvbatch never writes ({error!r:.200}); run the "
            "prediction again"
        ) from None


def _record_examples(stats: Statistics, result: Result, ref: ChunkRef) -> None:
    """Record up to `MAX_EXAMPLES` images of every kind of failure in a chunk."""
    num_missing = sum(min(count, MAX_EXAMPLES) for count in stats.failures.values())
    for row in result.rows(ref, (), _BATCH_ROWS):
        if row.error is not None:
            examples = stats.examples.setdefault(f"{row.error.stage}/{row.error.kind}", [])
            if len(examples) < MAX_EXAMPLES:
                examples.append((row.image_id, row.error.message))
                num_missing -= 1
        if not num_missing:
            return


def _count_batch(stats: Statistics, batch: pa.RecordBatch, file: int) -> None:
    is_failed = pc.not_equal(batch["status"], "ok").to_numpy(zero_copy_only=False)
    stats.num_failed += int(is_failed.sum())
    if is_failed.any():
        errors = batch["error"].filter(pa.array(is_failed))
        stage, kind = (pc.struct_field(errors, name) for name in ("stage", "kind"))
        stats.failures.update(pc.binary_join_element_wise(stage, kind, "/").to_pylist())
    best = np.full(batch.num_rows, np.inf)  # score; of the first column with scores
    for page in COLUMN_PAGES.values():
        column = page.counted_column
        if column not in batch.schema.names:
            continue
        lengths = pc.fill_null(pc.list_value_length(batch[column]), 0).to_numpy()
        image = np.repeat(np.arange(batch.num_rows), lengths)
        structs = batch[column].flatten()
        class_id = pc.struct_field(structs, "class_id").to_numpy(zero_copy_only=False)
        _count_classes(stats, page, class_id, image, file)
        if page.score_title:
            score = pc.struct_field(structs, "score").to_numpy(zero_copy_only=False)
            highest = np.full(batch.num_rows, -np.inf)
            np.maximum.at(highest, image, score)
            _count_scores(stats, column, highest[lengths > 0] if page.has_one_class else score)
            best = np.where((lengths > 0) & ~np.isfinite(best), highest, best)
    rows = np.flatnonzero(np.isfinite(best))
    ranked = _RankedRows.of(0, best[rows], file, stats.num_rows + rows)
    stats.least_confident = stats.least_confident.lowest(ranked, MAX_LEAST_CONFIDENT)


def _count_classes(
    stats: Statistics,
    page: ColumnPage,
    class_id: np.ndarray,  # (m,) int32
    image: np.ndarray,  # (m,) int64 row in the batch, ascending
    file: int,
) -> None:
    column = page.counted_column
    stats.num_elements[column].update(_counts(class_id))
    if page.has_one_class:
        _, first = np.unique(image, return_index=True)
        image, class_id = image[first], class_id[first]
    pairs = np.unique(class_id.astype(np.int64) << 32 | image)  # sorted by class, then by row
    classes, rows = pairs >> 32, stats.num_rows + (pairs & 0xFFFFFFFF)
    stats.num_images[column].update(_counts(classes))
    ranked = _RankedRows.of(classes, _pseudo_random(file, rows), file, rows)
    stats.class_samples[column] = stats.class_samples[column].lowest(ranked, ROWS_PER_CLASS)


def _counts(values: np.ndarray) -> dict[int, int]:
    unique, counts = np.unique(values, return_counts=True)
    return dict(zip(unique.tolist(), counts.tolist(), strict=True))


def _count_scores(stats: Statistics, column: str, score: np.ndarray) -> None:  # (m,) float32
    score = score[np.isfinite(score)].astype(np.float64)
    stats.score_bins[column].update(
        _counts(np.clip(np.floor(score * NUM_BINS), 0, NUM_BINS - 1).astype(int))
    )
    low, high = stats.score_range
    stats.score_range = float(score.min(initial=low)), float(score.max(initial=high))


def _pseudo_random(file: int, rows: np.ndarray) -> np.ndarray:  # (n,) → (n,) float64
    """Return a reproducible pseudo-random number for each row.

    Source: splitmix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014.
    """
    with np.errstate(over="ignore"):
        z = (np.uint64(file) << np.uint64(32)) + rows.astype(np.uint64)
        z = (z + np.uint64(SEED + 1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))).astype(np.float64)
