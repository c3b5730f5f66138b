"""From a source to chunks: what there is to do, what is done, and what is left, at any moment.

Planning writes nothing. `Plan.commit` adds what is new to the manifest; chunks that were planned
before keep their ids and their order, and the same new images always give the same chunks. A chunk
whose files changed is planned again as a revision, and is done when its file says so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SinkError, SourceError
from cvbatch.core.types import Chunk, ChunkRef
from cvbatch.planning import manifest, part_files
from cvbatch.planning.manifest import ChunkIndex, Generation, read_chunk
from cvbatch.planning.revisions import Changes, Revision, compare_files, num_files, revise
from cvbatch.sources.discovery import SourceFiles, find_files
from cvbatch.storage import store
from cvbatch.storage.listing import Progress

__all__ = ["Plan", "cut", "make_plan", "plan_files", "read_chunk"]

_PART = re.compile(r"part-([0-9a-f]{16})\.parquet")
_THREADS = 16


class Source(Protocol):
    """What a job file says of its source."""

    @property
    def uri(self) -> Sequence[str]:
        """Files, folders, patterns, or manifests."""

    @property
    def format(self) -> str:
        """ "auto", or a key of `cvbatch.sources.formats.INPUT_FORMATS`."""

    @property
    def image_column(self) -> str:
        """Of Parquet files."""


@dataclass
class Plan:
    """All chunks of a job, in order, and which of them are done."""

    format: str  # a key of INPUT_FORMATS: how `left` is to be read
    chunks: tuple[ChunkRef, ...]
    done: frozenset[str]  # ids of chunks whose file lies in the sink, as they were planned last
    stale: tuple[str, ...]  # ids of chunks that hold nothing any more, but have a file in the sink
    revisions: dict[str, int]  # of the chunks that were planned again: how often
    num_images: int  # of all chunks, where they are known before reading
    num_bytes: int
    num_new: int  # files that no earlier planning knew
    num_changed: int  # files that changed since they were planned; their chunks are done again
    num_removed: int  # files that were planned and are not in the source any more: rows stay
    num_ignored_files: int  # files in the source that are not of its format
    _new: tuple[Generation, str] | None = None  # what commit writes, and where

    @property
    def pending(self) -> tuple[ChunkRef, ...]:
        """Return the chunks still to be done, in order."""
        return tuple(chunk for chunk in self.chunks if chunk.chunk_id not in self.done)

    def read_chunk(self, ref: ChunkRef) -> Chunk:
        """Return the images of a chunk of this plan, committed or not."""
        if self._new and ref.manifest_uri == self._new[1]:
            return manifest.planned_chunk(self._new[0], ref)
        return read_chunk(ref)

    @property
    def is_finished(self) -> bool:
        """Say whether there is nothing at all to write: no chunk, nothing new, nothing stale."""
        return not (self.pending or self.stale or self._new)

    def commit(self) -> None:
        """Write what is new into the manifest; nothing where nothing is new.

        Raises CvbatchError where another job planned into the same sink at the same moment.
        """
        if self._new:
            manifest.write(*self._new)
            self._new = None


def make_plan(
    source: Source,
    sink_uri: str,
    chunk_images: int,
    chunk_bytes: int,
    on_progress: Progress | None = None,
) -> Plan:
    """Return the plan of a job; nothing is written.

    A chunk holds at most `chunk_images` images and `chunk_bytes` bytes, or one unit: an image
    file, a slice of a row group, or a tar. A file whose images only reading can count (a tar) is
    always a chunk of its own. on_progress is
    called with the number of files found so far.

    Raises SourceError, SinkError (another format's manifest, not accessible), or StoreError.
    """
    files = find_files(source.uri, source.format, sink_uri, on_progress)
    return plan_files(files, source.image_column, sink_uri, chunk_images, chunk_bytes)


def plan_files(
    found: SourceFiles, image_column: str, sink_uri: str, chunk_images: int, chunk_bytes: int
) -> Plan:
    """Return the plan for files already found; otherwise as `make_plan`."""
    try:
        uris = manifest.generation_uris(sink_uri)
        known = manifest.read(uris)
    except (NotFoundError, AccessDeniedError) as error:
        raise SinkError(f"the sink cannot be used: {error}") from None
    reading = found.format.reading(image_column)
    if known.reading not in (None, reading):
        raise SinkError(
            f"the sink {sink_uri} was planned with {known.reading}, this job reads {reading}; use "
            "another sink"
        )
    book, holders = known.chunk_index, known.holders
    changes = compare_files(found, known)
    del known
    if holders and changes.new.num_rows:
        ids = manifest.units_of(holders, ["image_id"])["image_id"].combine_chunks()
        _refuse_clash(changes.new, ids, sink_uri)
    revision = revise(changes, found, image_column, chunk_images)
    fresh = found.format.expand(changes.new, image_column, chunk_images)
    units = pa.concat_tables([revision.added, fresh])
    new = None
    if units.num_rows or changes.changed.num_rows:
        generation, contents = _generation(revision, units, reading, chunk_images, chunk_bytes)
        number = int(uris[-1].rsplit("/", 1)[1][:6]) + 1 if uris else 0
        new = (generation, manifest.generation_uri(sink_uri, number, contents))
        manifest.add_generation(book, manifest.chunk_refs(*new), generation.emptied)
    return _plan(found, sink_uri, book, changes, num_files(fresh, found.format), new)


def _generation(
    revision: Revision,
    units: pa.Table,
    reading: dict[str, str],
    chunk_images: int,
    chunk_bytes: int,
) -> tuple[Generation, list[str]]:
    """Return what is to be added to the manifest, and the words its file is named after."""
    cuts = cut(units, chunk_images, chunk_bytes)
    ids = _digests(units, cuts, reading["format"], "image_id")
    offsets = np.concatenate([revision.offsets, revision.offsets[-1] + cuts[1:]])
    generation = Generation(
        units=pa.concat_tables([revision.units, units]),
        offsets=offsets,
        chunk_ids=revision.chunk_ids + ids,
        group_offsets=manifest.group_offsets(offsets),
        reading=reading,
        emptied=revision.emptied,
    )
    contents = _digests(revision.units, revision.offsets, "revision", "version")
    return generation, [*ids, *revision.chunk_ids, *contents, *revision.emptied]


def _plan(
    found: SourceFiles,
    sink_uri: str,
    book: ChunkIndex,
    changes: Changes,
    num_new: int,
    new: tuple[Generation, str] | None,
) -> Plan:
    chunks = tuple(entry.ref for entry in book.values() if entry.ref)
    if not chunks and not book:
        raise SourceError("the source holds no image; check source.uri")
    try:
        written = _written(sink_uri)
        done = _done(sink_uri, book, written)
    except (NotFoundError, AccessDeniedError) as error:
        raise SinkError(f"the sink cannot be used: {error}") from None
    return Plan(
        format=found.format.name,
        chunks=chunks,
        done=done,
        stale=tuple(name for name, entry in book.items() if not entry.ref and name in written),
        revisions={name: entry.revision for name, entry in book.items() if entry.revision},
        num_images=sum(chunk.num_images for chunk in chunks),
        num_bytes=sum(chunk.size_bytes for chunk in chunks),
        num_new=num_new,
        num_changed=changes.changed.num_rows,
        num_removed=changes.num_removed,
        num_ignored_files=found.num_ignored,
        _new=new,
    )


def _written(sink_uri: str) -> frozenset[str]:
    """Return the ids of the chunks that have a file in the sink."""
    matches = map(_PART.fullmatch, store.list_names(sink_uri))
    return frozenset(match[1] for match in matches if match)


def _done(sink_uri: str, book: ChunkIndex, written: frozenset[str]) -> frozenset[str]:
    """Return which of them hold their chunk as it was planned last.

    Only of a chunk that was planned again the file must be asked.
    """
    done = {name for name, entry in book.items() if entry.ref and name in written}
    asked = [name for name in done if book[name].revision]

    def held(name: str) -> int:
        return part_files.read_revision(store.join(sink_uri, part_files.part_name(name)))

    with ThreadPoolExecutor(_THREADS) as pool:
        revisions = dict(zip(asked, pool.map(held, asked), strict=True))
    return frozenset(name for name in done if revisions.get(name, 0) >= book[name].revision)


def _refuse_clash(new: pa.Table, known_ids: pa.Array, sink_uri: str) -> None:
    """Raise SinkError where a new file's id is known from another place: it would stand twice."""
    clash = new.filter(pc.is_in(new["image_id"], known_ids))
    if clash.num_rows:
        raise SinkError(
            f"{clash.num_rows} images have ids that the sink {sink_uri} has from another place, "
            f"such as {clash['image_id'][0].as_py()!r}, now at {clash['uri'][0].as_py()}; use "
            "another sink for another source"
        )


def cut(units: pa.Table, chunk_images: int, chunk_bytes: int) -> np.ndarray:  # (C + 1,)
    """Return the offsets of chunks: each as long as the bounds allow, never empty.

    units: num_rows (N,), size_bytes (N,). A unit whose images only reading can count stands alone.
    """
    rows = units["num_rows"].to_numpy()
    images = _running(np.where(rows == 0, chunk_images, rows))  # (N + 1,)
    sizes = _running(units["size_bytes"].to_numpy())  # (N + 1,)
    offsets = [0]
    while (start := offsets[-1]) < units.num_rows:
        end = min(
            int(np.searchsorted(images, images[start] + chunk_images, "right")) - 1,
            int(np.searchsorted(sizes, sizes[start] + chunk_bytes, "right")) - 1,
            start + manifest.ROW_GROUP_ROWS,
        )
        offsets.append(max(end, start + 1))
    return np.array(offsets, np.int64)


def _running(values: np.ndarray) -> np.ndarray:  # (N,) → (N + 1,)
    return np.concatenate([[0], np.cumsum(values)])


def _digests(units: pa.Table, offsets: np.ndarray, salt: str, column: str) -> list[str]:
    """Return for each chunk 16 hex digits of the SHA-256 of what it holds, wherever it lies.

    column: of strings, what tells its units beside their sizes and rows.
    """
    borders, text = _text_of(units[column].cast(pa.large_string()).combine_chunks())
    numbers = np.stack(
        [units[name].to_numpy() for name in ("size_bytes", "row_group", "row_start", "num_rows")],
        axis=1,
    ).astype("<i8")  # (N, 4)
    digests = []
    for start, end in pairwise(offsets):
        digest = hashlib.sha256(f"{salt}\n{end - start}\n".encode())
        digest.update(numbers[start:end].tobytes())
        digest.update((borders[start + 1 : end + 1] - borders[start]).astype("<i8").tobytes())
        digest.update(text[borders[start] : borders[end]])
        digests.append(digest.hexdigest()[:16])
    return digests


def _text_of(strings: pa.Array) -> tuple[np.ndarray, memoryview]:
    """Return (N + 1,) borders and the UTF-8 bytes between them of a large_string array."""
    _, borders, text = strings.buffers()
    all_borders = np.frombuffer(borders, np.int64)
    return all_borders[strings.offset : strings.offset + len(strings) + 1], memoryview(text)
