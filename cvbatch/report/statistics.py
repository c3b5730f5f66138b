"""What a result comes to, from its columns of classes and scores: no mask, no heatmap, no image.

A large result is looked at in part: files spread evenly over it, whole, up to a number of rows.
What is picked for the gallery follows from the rows' places alone, so a page comes out the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import SourceError
from cvbatch.core.types import ChunkRef
from cvbatch.results.parts import Parts, describe, read_batches, read_rows

MAX_FILES = 2048
MAX_ROWS = 1 << 20
LOWEST = 16  # images kept for the least certain answers
OF_CLASS = 6  # images kept for each class
EXAMPLES = 4  # of a kind of failure
BINS = 20
_THREADS = 16  # of a store most of the time is waiting
_ROWS_AT_ONCE = 8192
_LEAVES = {
    "labels": ("class_id", "score"),
    "boxes": ("class_id", "score"),
    "mask_areas": ("class_id",),
}


class Pick(NamedTuple):
    """A row by its place."""

    ref: ChunkRef
    row: int


class _Best(NamedTuple):
    """Rows with a number each, of which the lowest are kept, some for each group."""

    group: np.ndarray  # (n,) int64
    rank: np.ndarray  # (n,) float64 or uint64
    file: np.ndarray  # (n,) int64 into the files that were looked at
    row: np.ndarray  # (n,) int64

    @classmethod
    def none(cls) -> _Best:
        return cls(*(np.zeros(0, kind) for kind in (np.int64, np.float64, np.int64, np.int64)))

    def kept(self, most: int) -> _Best:
        """Return the `most` lowest of each group."""
        order = np.lexsort((self.row, self.file, self.rank, self.group))
        group = self.group[order]
        _, start, size = np.unique(group, return_index=True, return_counts=True)
        place = np.arange(len(group)) - np.repeat(start, size)
        chosen = order[place < most]
        return _Best(*(column[chosen] for column in self))

    def joined(self, other: _Best) -> _Best:
        return _Best(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


@dataclass
class Survey:
    """What was counted, and which rows are worth a look."""

    files: list[ChunkRef]  # that were looked at
    num_rows: int = 0
    num_failed: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # "stage/kind" → rows
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # → id, message
    images_with: dict[str, Counter[int]] = field(default_factory=dict)  # column → class → rows
    found: dict[str, Counter[int]] = field(default_factory=dict)  # column → class → elements
    num_empty: Counter[str] = field(default_factory=Counter)  # column → ok rows without an element
    scores: dict[str, Counter[int]] = field(
        default_factory=dict
    )  # column → bin of score → how many
    score_range: tuple[float, float] = (0.0, 1.0)
    of_class: dict[str, _Best] = field(default_factory=dict)
    lowest: _Best = field(default_factory=_Best.none)
    num_files: int = 0  # of the whole result

    @property
    def has_all(self) -> bool:
        """Say whether every row was counted."""
        return self.num_files == len(self.files)

    def picks_of_class(self, column: str) -> dict[int, list[Pick]]:
        """Return rows in which a class was found, spread over the result, by class."""
        found: dict[int, list[Pick]] = {}
        best = self.of_class.get(column, _Best.none())
        for group, _, file, row in zip(*(part.tolist() for part in best), strict=True):
            found.setdefault(group, []).append(Pick(self.files[file], row))
        return found

    def picks_lowest(self) -> list[Pick]:
        """Return the rows whose surest answer is least sure, that first."""
        files, rows = self.lowest.file.tolist(), self.lowest.row.tolist()
        return [Pick(self.files[file], row) for file, row in zip(files, rows, strict=True)]


def survey(parts: Parts) -> Survey:
    """Return what the files of a result hold.

    Raises:
        SourceError: a file is damaged, of another schema version, or of another job than the rest.
    """
    total = Survey(_spread(parts.done))
    total.num_files = len(parts.done)
    if not total.files:
        return total
    job = describe(parts.uri_of(total.files[0])).document["fingerprint"]
    with ThreadPoolExecutor(_THREADS) as pool:
        uris = [parts.uri_of(ref) for ref in total.files]
        for one in pool.map(lambda item: _count(item[1], item[0], job), enumerate(uris)):
            _add(total, one)
    return total


def _spread(done: Sequence[ChunkRef]) -> list[ChunkRef]:
    """Return the files to look at: all, or some at equal distances."""
    count = min(len(done), MAX_FILES)
    rows = sum(max(ref.num_images, 1) for ref in done)
    if rows > MAX_ROWS:
        count = max(1, min(count, len(done) * MAX_ROWS // rows))
    places = np.linspace(0, max(len(done) - 1, 0), count).round().astype(int)
    return [done[i] for i in places]


def _count(uri: str, file: int, job: str) -> Survey:
    """Return what one file holds; the places of its rows say `file`."""
    said = describe(uri)
    if said.document["fingerprint"] != job:
        raise SourceError(
            f"{uri} is of another job than the rest; take out what was put there by hand, or "
            "predict again into an empty folder"
        )
    one = Survey([])
    leaves = [
        f"{column}.list.element.{leaf}"
        for column, names in _LEAVES.items()
        if column in said.columns
        for leaf in names
    ]
    columns = ["status", "error.stage", "error.kind", *leaves]
    first = 0
    try:
        for batch in read_batches(uri, columns, _ROWS_AT_ONCE):
            _count_batch(one, batch, file, first)
            first += batch.num_rows
        if one.num_failed:
            _find_examples(one, uri)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise SourceError(
            f"{uri} holds what no cvbatch writes ({error!r:.200}); predict again"
        ) from None
    one.num_rows = first
    return one


def _find_examples(one: Survey, uri: str) -> None:
    """Name some images of every kind of failure in a file."""
    wanted = sum(min(count, EXAMPLES) for count in one.failures.values())
    for row in read_rows(uri, ("image_id", "status", "error"), _ROWS_AT_ONCE):
        if row["status"] != "ok":
            error = row["error"]
            named = one.examples.setdefault(f"{error['stage']}/{error['kind']}", [])
            if len(named) < EXAMPLES:
                named.append((row["image_id"], error["message"]))
                wanted -= 1
        if not wanted:
            return


def _count_batch(one: Survey, batch: Any, file: int, first: int) -> None:
    is_failed = pc.not_equal(batch["status"], "ok").to_numpy(zero_copy_only=False)
    one.num_failed += int(is_failed.sum())
    if is_failed.any():
        errors = batch["error"].filter(pa.array(is_failed))
        kinds = pc.binary_join_element_wise(
            pc.struct_field(errors, "stage"), pc.struct_field(errors, "kind"), "/"
        )
        one.failures.update(kinds.to_pylist())
    best = np.full(batch.num_rows, np.inf)
    for column in _LEAVES:
        if column not in batch.schema.names:
            continue
        lists = batch[column]
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        image = np.repeat(np.arange(batch.num_rows), lengths)
        structs = lists.flatten()
        class_id = pc.struct_field(structs, "class_id").to_numpy(zero_copy_only=False)
        one.num_empty[column] += int(((lengths == 0) & ~is_failed).sum())
        _note_classes(one, column, class_id, image, file, first)
        if "score" in _LEAVES[column]:
            score = pc.struct_field(structs, "score").to_numpy(zero_copy_only=False)
            surest = np.full(batch.num_rows, -np.inf)
            np.maximum.at(surest, image, score)
            _note_scores(one, column, surest[lengths > 0] if column == "labels" else score)
            best = np.where((lengths > 0) & ~np.isfinite(best), surest, best)
    rows = np.flatnonzero(np.isfinite(best))
    lowest = _Best(
        np.zeros(len(rows), np.int64), best[rows], np.full(len(rows), file), first + rows
    )
    one.lowest = one.lowest.joined(lowest).kept(LOWEST)


def _note_classes(
    one: Survey,
    column: str,
    class_id: np.ndarray,  # (m,) int32
    image: np.ndarray,  # (m,) int64 row in the batch, ascending
    file: int,
    first: int,
) -> None:
    if not len(class_id):
        return
    found = one.found.setdefault(column, Counter())
    names, counts = np.unique(class_id, return_counts=True)
    found.update(dict(zip(names.tolist(), counts.tolist(), strict=True)))
    if column == "labels":  # the best one says what the image was taken for
        _, at = np.unique(image, return_index=True)
        image, class_id = image[at], class_id[at]
    pairs = np.unique(class_id.astype(np.int64) << 32 | image)  # of a class the rows ascend
    classes, rows = pairs >> 32, first + (pairs & 0xFFFFFFFF)
    names, counts = np.unique(classes, return_counts=True)
    with_it = one.images_with.setdefault(column, Counter())
    with_it.update(dict(zip(names.tolist(), counts.tolist(), strict=True)))
    rank = _shuffled(file, rows).astype(np.float64)
    more = _Best(classes, rank, np.full(len(rows), file), rows)
    one.of_class[column] = one.of_class.get(column, _Best.none()).joined(more).kept(OF_CLASS)


def _note_scores(one: Survey, column: str, score: np.ndarray) -> None:  # (m,) float32
    score = score[np.isfinite(score)]
    if not len(score):
        return
    bins = np.clip(np.floor(score.astype(np.float64) * BINS), 0, BINS - 1).astype(int)
    places, counts = np.unique(bins, return_counts=True)
    one.scores.setdefault(column, Counter()).update(
        dict(zip(places.tolist(), counts.tolist(), strict=True))
    )
    low, high = one.score_range
    one.score_range = min(low, float(score.min())), max(high, float(score.max()))


def _shuffled(file: int, rows: np.ndarray) -> np.ndarray:  # (n,) → (n,) uint64
    """Return a number for each row that looks drawn, and is always the same (splitmix64)."""
    with np.errstate(over="ignore"):
        z = (np.uint64(file) << np.uint64(32)) + rows.astype(np.uint64)
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _add(total: Survey, one: Survey) -> None:
    """Count a file in."""
    total.num_rows += one.num_rows
    total.num_failed += one.num_failed
    total.failures.update(one.failures)
    total.num_empty.update(one.num_empty)
    for theirs, ours in (
        (one.images_with, total.images_with),
        (one.found, total.found),
        (one.scores, total.scores),
    ):
        for column, counts in theirs.items():
            ours.setdefault(column, Counter()).update(counts)
    low, high = one.score_range
    total.score_range = min(low, total.score_range[0]), max(high, total.score_range[1])
    for column, best in one.of_class.items():
        joined = total.of_class.get(column, _Best.none()).joined(best)
        total.of_class[column] = joined.kept(OF_CLASS)
    total.lowest = total.lowest.joined(one.lowest).kept(LOWEST)
    for kind, examples in one.examples.items():
        total.examples[kind] = (total.examples.get(kind, []) + examples)[:EXAMPLES]
