"""Plan the chunks of a source: new, done and pending.

Planning writes nothing; `Plan.commit` adds new chunks to the manifest. Chunks that were planned
before keep their ids and order, and the same new images always give the same chunks. A chunk whose
files changed is planned again as a revision; it is done when its part has that revision.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SinkError, SourceError
from cvbatch.core.ignored import Ignored
from cvbatch.core.types import Chunk, ChunkRef, SourceOptions
from cvbatch.planning import manifest, part_files
from cvbatch.planning.manifest import ChunkIndex, Generation, read_chunk
from cvbatch.planning.revisions import Changes, Revision, compare_files, num_files, revise
from cvbatch.sources.discovery import SourceFiles, find_files
from cvbatch.storage import store
from cvbatch.storage.junk import JUNK
from cvbatch.storage.listing import Progress
from cvbatch.storage.store import Storage

__all__ = ["Plan", "cut", "make_plan", "plan_files", "power_of_two", "read_chunk", "short_chunk"]

_PART = re.compile(r"part-([0-9a-f]{16})\.parquet")
_THREADS = 16
_FEW_CHUNKS, _MANY_CHUNKS = 8, 64  # for as many workers
_WORTH_A_FILE = 4  # images, unless there are too few for `_FEW_CHUNKS`


class Source(Protocol):
    """The source section of a job file."""

    @property
    def uri(self) -> Sequence[str]:
        """Files, folders, globs or manifest lists."""

    @property
    def format(self) -> str:
        """ "auto", or a key of `cvbatch.sources.formats.INPUT_FORMATS`."""

    @property
    def image_column(self) -> str:
        """Image column of Parquet files."""


@dataclass
class Plan:
    """All chunks of a job, in order, and which of them are done."""

    format: str  # a key of INPUT_FORMATS
    chunks: tuple[ChunkRef, ...]
    done: frozenset[str]  # ids of chunks whose part is in the sink, with the last revision
    stale: tuple[str, ...]  # ids of chunks without units whose part is still in the sink
    revisions: dict[str, int]  # of chunks that were planned again: chunk id → revision
    num_images: int  # of all chunks; a tar counts 0 before it is read
    num_bytes: int
    num_new: int  # files that were not planned before
    num_changed: int  # files that changed since they were planned; their chunks are processed again
    num_removed: int  # planned files that are no longer in the source; their rows stay
    ignored: Ignored  # files in the source that are not read
    _storage: Storage
    _new: tuple[Generation, str] | None = None  # for `commit`: generation and its URI

    @property
    def num_ignored_files(self) -> int:
        """Return the number of files in the source that are not of its format, without junk."""
        return sum(count for kind, count in self.ignored.counts.items() if kind != JUNK)

    @property
    def pending(self) -> tuple[ChunkRef, ...]:
        """Return the chunks that are not done, in order."""
        return tuple(chunk for chunk in self.chunks if chunk.chunk_id not in self.done)

    def read_chunk(self, ref: ChunkRef) -> Chunk:
        """Return the images of a chunk of this plan, committed or not."""
        if self._new and ref.manifest_uri == self._new[1]:
            return manifest.planned_chunk(self._new[0], ref)
        return read_chunk(self._storage, ref)

    def first_items(self, refs: Sequence[ChunkRef], count: int) -> Chunk:
        """Return the first items of chunks of this plan, at most `count`, as one chunk."""
        items = chain.from_iterable(self.read_chunk(ref).items for ref in refs)
        return Chunk(refs[0].chunk_id, tuple(islice(items, count)))

    @property
    def is_finished(self) -> bool:
        """Return whether there is nothing to write: no pending, new or stale chunk."""
        return not (self.pending or self.stale or self._new)

    def commit(self) -> None:
        """Add new and revised chunks to the manifest, if there are any.

        Raises:
            CvbatchError: another job planned into the same sink at the same time.
        """
        if self._new:
            manifest.write(self._storage, *self._new)
            self._new = None


def make_plan(
    storage: Storage,
    source: Source,
    sink_uri: str,
    chunk_images: int,
    chunk_bytes: int,
    on_progress: Progress | None = None,
    options: SourceOptions | None = None,
) -> Plan:
    """Return the plan of a job; nothing is written.

    Args:
        storage: of source and sink.
        source: files and their format.
        sink_uri: the sink, whose manifest and parts are read.
        chunk_images: maximum of images in a chunk.
        chunk_bytes: maximum of encoded bytes in a chunk. Both may be exceeded by a chunk of one
            unit: an image file, a slice of a row group, or a tar. A tar is always its own chunk,
            because its images can only be counted by reading it.
        on_progress: called with the number of files found so far.
        options: choose the images of the source; None: the defaults.

    Raises:
        SourceError: there is no image, or the source cannot be read.
        SinkError: the sink has a manifest of another format, or is not accessible.
        StoreError: a request failed.
    """
    files = find_files(storage, source.uri, source.format, sink_uri, on_progress, options)
    return plan_files(storage, files, source.image_column, sink_uri, chunk_images, chunk_bytes)


def plan_files(
    storage: Storage,
    source: SourceFiles,
    image_column: str,
    sink_uri: str,
    chunk_images: int,
    chunk_bytes: int,
    min_images: int | None = None,
) -> Plan:
    """Return the plan for files that are already listed; otherwise as `make_plan`.

    Args:
        min_images: cut few new images into chunks as short as this, so that many workers have work;
            None: chunks are as long as the limits allow.
    """
    try:
        uris = manifest.generation_uris(storage, sink_uri)
        stored = manifest.read(storage, uris)
    except (NotFoundError, AccessDeniedError) as error:
        raise SinkError(f"the sink cannot be used: {error}") from None
    reading = source.format.reading(image_column)
    if stored.reading not in (None, reading):
        raise SinkError(
            f"the sink {sink_uri} was planned with {stored.reading}, this job has {reading}; use "
            "another sink"
        )
    index, refs = stored.chunk_index, stored.refs
    changes = compare_files(source, stored)
    del stored  # releases its units
    if refs and changes.new.num_rows:
        ids = manifest.units_of(storage, refs, ["image_id"])["image_id"].combine_chunks()
        _refuse_duplicate_ids(changes.new, ids, sink_uri)
    revision = revise(storage, changes, source, image_column, chunk_images)
    new_units = source.format.expand(storage, changes.new, image_column, chunk_images)
    if min_images is not None:
        num_images = sum(
            pc.sum(table["num_rows"]).as_py() or 0 for table in (revision.added, new_units)
        )
        chunk_images = short_chunk(num_images, min_images, chunk_images)
        if source.format.is_split and (pc.max(new_units["num_rows"]).as_py() or 0) > chunk_images:
            new_units = source.format.expand(storage, changes.new, image_column, chunk_images)
    units = pa.concat_tables([revision.added, new_units])
    new = None
    if units.num_rows or changes.changed.num_rows:
        generation, contents = _generation(revision, units, reading, chunk_images, chunk_bytes)
        number = int(uris[-1].rsplit("/", 1)[1][:6]) + 1 if uris else 0
        new = (generation, manifest.generation_uri(sink_uri, number, contents))
        manifest.add_generation(index, manifest.chunk_refs(*new), generation.emptied)
    num_new = num_files(new_units, source.format)
    return _make_plan(storage, source, sink_uri, index, changes, num_new, new)


def _generation(
    revision: Revision,
    units: pa.Table,
    reading: dict[str, str],
    chunk_images: int,
    chunk_bytes: int,
) -> tuple[Generation, list[str]]:
    """Return the next generation, and the strings that its file name is a hash of."""
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


def _make_plan(
    storage: Storage,
    source: SourceFiles,
    sink_uri: str,
    index: ChunkIndex,
    changes: Changes,
    num_new: int,
    new: tuple[Generation, str] | None,
) -> Plan:
    chunks = tuple(entry.ref for entry in index.values() if entry.ref)
    if not chunks and not index:
        raise SourceError("the source contains no image; check source.uri")
    try:
        written = part_sizes(storage, sink_uri).keys()
        done = done_chunks(storage, sink_uri, index, written)
    except (NotFoundError, AccessDeniedError) as error:
        raise SinkError(f"the sink cannot be used: {error}") from None
    return Plan(
        format=source.format.name,
        chunks=chunks,
        done=done,
        stale=tuple(name for name, entry in index.items() if not entry.ref and name in written),
        revisions={name: entry.revision for name, entry in index.items() if entry.revision},
        num_images=sum(chunk.num_images for chunk in chunks),
        num_bytes=sum(chunk.size_bytes for chunk in chunks),
        num_new=num_new,
        num_changed=changes.changed.num_rows,
        num_removed=changes.num_removed,
        ignored=source.ignored,
        _storage=storage,
        _new=new,
    )


def part_sizes(storage: Storage, sink_uri: str) -> dict[str, int]:
    """Return chunk id → size in bytes of the parts in a sink."""
    sizes = storage.list_names(sink_uri)
    return {match[1]: sizes[name] for name in sizes if (match := _PART.fullmatch(name))}


def done_chunks(
    storage: Storage, sink_uri: str, index: ChunkIndex, written: Collection[str]
) -> frozenset[str]:
    """Return the ids of chunks whose part has the last revision.

    Only the parts of chunks that were planned again are opened.

    Args:
        storage: reads the parts.
        index: all chunks of its manifest.
        written: ids of the chunks with a part.
    """
    done = {name for name, entry in index.items() if entry.ref and name in written}
    revised = [name for name in done if index[name].revision]

    def revision_in_part(name: str) -> int:
        return part_files.read_revision(storage, store.join(sink_uri, part_files.part_name(name)))

    with ThreadPoolExecutor(_THREADS) as pool:
        revisions = dict(zip(revised, pool.map(revision_in_part, revised), strict=True))
    return frozenset(name for name in done if revisions.get(name, 0) >= index[name].revision)


def _refuse_duplicate_ids(new: pa.Table, known_ids: pa.Array, sink_uri: str) -> None:
    """Raise SinkError if the id of a new file is in the sink, with another URI."""
    duplicates = new.filter(pc.is_in(new["image_id"], known_ids))
    if duplicates.num_rows:
        raise SinkError(
            f"{duplicates.num_rows} images have ids that the sink {sink_uri} has of another URI, "
            f"such as {duplicates['image_id'][0].as_py()!r}, now at "
            f"{duplicates['uri'][0].as_py()}; use another sink for another source"
        )


def short_chunk(num_images: int, min_images: int, max_images: int) -> int:
    """Return the images of a chunk: few images make 8 chunks, more make 64 chunks of at least 4.

    It is a power of two within the limits, so that batches of few sizes fill the chunks. The number
    of workers does not matter: the same images give the same chunks on every machine.

    Args:
        num_images: to be cut.
        min_images: of a chunk, if the maximum allows it.
        max_images: of a chunk.
    """
    least = min(power_of_two(num_images / _FEW_CHUNKS), _WORTH_A_FILE)
    return min(max(least, power_of_two(num_images / _MANY_CHUNKS), min_images), max_images)


def power_of_two(number: float) -> int:
    """Return the smallest power of two that is not smaller than a number."""
    return 1 << max(0, math.ceil(number) - 1).bit_length()


def cut(units: pa.Table, chunk_images: int, chunk_bytes: int) -> np.ndarray:  # (C + 1,)
    """Return the offsets of chunks: each as long as the limits allow, at least one unit.

    Args:
        units: N units with num_rows and size_bytes; num_rows 0 (a tar) is its own chunk.
        chunk_images: maximum of images in a chunk.
        chunk_bytes: maximum of bytes in a chunk.
    """
    rows = units["num_rows"].to_numpy()
    images = _cumulative(np.where(rows == 0, chunk_images, rows))  # (N + 1,)
    sizes = _cumulative(units["size_bytes"].to_numpy())  # (N + 1,)
    offsets = [0]
    while (start := offsets[-1]) < units.num_rows:
        end = min(
            int(np.searchsorted(images, images[start] + chunk_images, "right")) - 1,
            int(np.searchsorted(sizes, sizes[start] + chunk_bytes, "right")) - 1,
            start + manifest.ROW_GROUP_ROWS,
        )
        offsets.append(max(end, start + 1))
    return np.array(offsets, np.int64)


def _cumulative(values: np.ndarray) -> np.ndarray:  # (N,) → (N + 1,)
    return np.concatenate([[0], np.cumsum(values)])


def _digests(units: pa.Table, offsets: np.ndarray, salt: str, column: str) -> list[str]:
    """Return 16 hex digits of the SHA-256 of each chunk's units, without their URIs.

    Args:
        units: of all chunks.
        offsets: (C + 1,) of the chunks.
        salt: hashed first.
        column: string column that identifies a unit, together with its size and rows.
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
    """Return offsets, (N + 1,) int64, and UTF-8 bytes of a large_string array."""
    _, borders, text = strings.buffers()
    all_borders = np.frombuffer(borders, np.int64)
    return all_borders[strings.offset : strings.offset + len(strings) + 1], memoryview(text)
