"""Manifest of a sink: the images of each chunk, in append-only Parquet files.

Each planning that finds new or changed files adds one file, a generation:
`_cvbatch/manifest/NNNNNN-<hash>.parquet`. A later generation may contain a chunk again, with the
current state of its files: a revision of the chunk, with the same id. The last one counts.
The rows of a chunk are in one row group, so a worker reads one row group to get its images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.core.errors import CvbatchError, SinkError
from cvbatch.core.types import Chunk, ChunkRef, Item
from cvbatch.sources.units import UNITS
from cvbatch.storage import store
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage

MANIFEST = pa.schema([("chunk_id", pa.string()), *UNITS])
ROW_GROUP_ROWS = 65_536
FOLDER = "_cvbatch/manifest"
_NAME = re.compile(r"(\d{6})-[0-9a-f]{16}\.parquet")
_METADATA_KEY = b"cvbatch"
_EMPTIED = "emptied"


class Generation(NamedTuple):
    """What one planning adds: units in order, divided into chunks by offsets."""

    units: pa.Table  # UNITS, N rows
    offsets: np.ndarray  # (C + 1,) int64: chunk c has the units offsets[c]:offsets[c + 1]
    chunk_ids: list[str]  # C
    group_offsets: np.ndarray  # (G + 1,) int64: units of each row group, on chunk borders
    reading: dict[str, str]  # format and image_column of the source
    emptied: tuple[str, ...] = ()  # ids of chunks that have no units any more


class ChunkEntry(NamedTuple):
    """Last state of a chunk in the manifest."""

    ref: ChunkRef | None  # None: the chunk has no units any more
    revision: int  # how often it was planned again


ChunkIndex = dict[str, ChunkEntry]  # by chunk id, in the order of first planning


def add_generation(index: ChunkIndex, chunks: Iterable[ChunkRef], emptied: Iterable[str]) -> None:
    """Add the chunks of one generation to the index, in place."""
    without_units = [(chunk_id, None) for chunk_id in emptied]
    for chunk_id, ref in [*without_units, *((chunk.chunk_id, chunk) for chunk in chunks)]:
        before = index.get(chunk_id)
        index[chunk_id] = ChunkEntry(ref, before.revision + 1 if before else 0)


def manifest_folder(sink_uri: str) -> str:
    """Return the URI of a sink's manifest folder."""
    return store.join(store.absolute(sink_uri), FOLDER)


def generation_uris(storage: Storage, sink_uri: str) -> list[str]:
    """Return the URIs of the manifest files, oldest first; [] before the first planning.

    Raises:
        SinkError: two files have the same number, because two jobs planned at the same time.
    """
    folder = manifest_folder(sink_uri)
    names = _file_names(storage, folder)
    for first, second in pairwise(names):
        if first[:6] == second[:6]:
            raise SinkError(
                f"{folder} contains both {first} and {second}: two jobs planned at once; wait "
                "until none runs, delete the file whose chunks have no part files, then run again"
            )
    return [store.join(folder, name) for name in names]


def _file_names(storage: Storage, folder: str) -> list[str]:
    """Return the names of the manifest files in order; an empty file was withdrawn."""
    sizes = storage.list_names(folder)
    return sorted(name for name, size in sizes.items() if size and _NAME.fullmatch(name))


def generation_uri(sink_uri: str, number: int, contents: Iterable[str]) -> str:
    """Return the URI of a manifest file; its name is a hash of its contents.

    Args:
        number: of the generation, from 0.
        contents: ids of new chunks; for a revision, also what distinguishes it from others.
    """
    digest = hashlib.sha256("".join(contents).encode()).hexdigest()[:16]
    return store.join(manifest_folder(sink_uri), f"{number:06d}-{digest}.parquet")


def group_offsets(offsets: np.ndarray) -> np.ndarray:  # (C + 1,) → (G + 1,)
    """Return offsets of row groups: on chunk borders, at most ROW_GROUP_ROWS rows apart."""
    groups = [0]
    while groups[-1] < offsets[-1]:
        last = np.searchsorted(offsets, groups[-1] + ROW_GROUP_ROWS, "right") - 1
        groups.append(int(offsets[last]))
    return np.array(groups, np.int64)


def chunk_refs(generation: Generation, uri: str) -> list[ChunkRef]:
    """Return the chunks of a generation that is, or will be, stored under `uri`."""
    starts, ends = generation.offsets[:-1], generation.offsets[1:]
    group = np.searchsorted(generation.group_offsets, starts, "right") - 1
    first = starts - generation.group_offsets[group]
    num_images, sizes = _sums(generation.units, starts)
    return [
        ChunkRef(chunk_id, uri, *(int(value) for value in values))
        for chunk_id, *values in zip(
            generation.chunk_ids, group, first, ends - starts, num_images, sizes, strict=True
        )
    ]


def _sums(units: pa.Table, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (C,), (C,)
    rows, sizes = (units[name].to_numpy() for name in ("num_rows", "size_bytes"))
    return np.add.reduceat(rows, starts), np.add.reduceat(sizes, starts)


def write(storage: Storage, generation: Generation, uri: str) -> None:
    """Write one manifest file; the same generation gives the same bytes.

    Raises:
        CvbatchError: another job planned into this sink at the same time.
    """
    chunk_index = np.repeat(np.arange(len(generation.chunk_ids)), np.diff(generation.offsets))
    metadata: dict[str, object] = {**generation.reading}
    if generation.emptied:
        metadata[_EMPTIED] = generation.emptied
    schema = MANIFEST.with_metadata({_METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    buffer = pa.BufferOutputStream()
    ids = pa.array(generation.chunk_ids, pa.string())
    with pq.ParquetWriter(
        buffer, schema, compression="zstd", use_dictionary=["chunk_id"], write_statistics=False
    ) as writer:
        for start, end in pairwise(generation.group_offsets):
            units = generation.units.slice(start, end - start)
            chunk_id = ids.take(pa.array(chunk_index[start:end]))
            table = pa.Table.from_arrays([chunk_id, *units.columns], schema=schema)
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    storage.put_bytes(uri, buffer.getvalue())
    _refuse_concurrent(storage, uri)


def _refuse_concurrent(storage: Storage, uri: str) -> None:
    """Withdraw our file by emptying it, if another job added one with the same number.

    Both jobs write before they list, so at least one of them detects the other and withdraws.
    """
    folder, name = uri.rsplit("/", 1)
    if any(other[:6] == name[:6] and other != name for other in _file_names(storage, folder)):
        storage.put_bytes(uri, b"")
        raise CvbatchError(
            f"another job planned into {folder} at the same time; run the same command again"
        )


class StoredManifest(NamedTuple):
    """The manifest of a sink: each chunk as it was planned last."""

    chunk_index: ChunkIndex
    refs: list[ChunkRef]  # chunks with units, in the order of `units`
    units: pa.Table  # uri: large_string, version: string, size_bytes: int64
    reading: dict[str, str] | None  # as in Generation; None before the first planning

    @property
    def chunks(self) -> list[ChunkRef]:
        """Return the chunks with units, in the order of first planning."""
        return [entry.ref for entry in self.chunk_index.values() if entry.ref]

    def chunks_of(self, units: np.ndarray) -> list[ChunkRef]:  # (K,) positions in `units`
        """Return the chunks of these units, each once, in the order of `units`."""
        ends = np.cumsum([ref.num_items for ref in self.refs])
        return [self.refs[i] for i in np.unique(np.searchsorted(ends, units, "right"))]


def read(storage: Storage, uris: list[str]) -> StoredManifest:
    """Return the chunks and units of manifest files, oldest first."""
    index: ChunkIndex = {}
    all_refs: list[ChunkRef] = []
    tables = []
    reading = None
    columns = ["uri", "version", "size_bytes"]
    for uri in uris:
        with storage.open_input(uri) as source:
            file = ParquetFile(source, read_dictionary=["chunk_id"])
            reading = json.loads(file.schema_arrow.metadata[_METADATA_KEY])
            emptied = reading.pop(_EMPTIED, [])
            refs: list[ChunkRef] = []
            for group in range(file.num_row_groups):
                refs += _refs_of_group(file, uri, group)
                tables.append(file.read_row_group(group, columns).replace_schema_metadata())
        add_generation(index, refs, emptied)
        all_refs += refs
    empty = pa.schema([UNITS.field(name) for name in columns]).empty_table()
    units = pa.concat_tables([empty, *tables])
    return _without_old_revisions(StoredManifest(index, all_refs, units, reading))


def _without_old_revisions(manifest: StoredManifest) -> StoredManifest:
    counts = np.array([ref.num_items for ref in manifest.refs], np.int64)
    index = manifest.chunk_index
    is_last = np.array([index[ref.chunk_id].ref is ref for ref in manifest.refs], bool)
    if is_last.all():
        return manifest
    refs = [manifest.refs[i] for i in np.flatnonzero(is_last)]
    units = manifest.units.filter(pa.array(np.repeat(is_last, counts)))
    return manifest._replace(refs=refs, units=units)


def units_of(
    storage: Storage, refs: Iterable[ChunkRef], columns: Sequence[str] = UNITS.names
) -> pa.Table:
    """Return units of written chunks, chunk after chunk; `columns`: of UNITS."""
    tables = [pa.schema([UNITS.field(name) for name in columns]).empty_table()]
    for uri, in_file in groupby(refs, key=lambda ref: ref.manifest_uri):
        with storage.open_input(uri) as source:
            file = ParquetFile(source)
            for group, in_group in groupby(in_file, key=lambda ref: ref.row_group):
                rows = file.read_row_group(group, columns).replace_schema_metadata()
                slices = [rows.slice(ref.first_row, ref.num_items) for ref in in_group]
                tables.append(pa.concat_tables(slices).combine_chunks())  # releases `rows`
    return pa.concat_tables(tables)


def _refs_of_group(file: ParquetFile, uri: str, group: int) -> list[ChunkRef]:
    units = file.read_row_group(group, ["chunk_id", "num_rows", "size_bytes"])
    chunk_id = units["chunk_id"].combine_chunks()
    index = chunk_id.indices.to_numpy()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(index)) + 1])
    counts = np.diff(np.append(starts, len(index)))
    num_images, sizes = _sums(units, starts)
    names = chunk_id.take(pa.array(starts)).to_pylist()
    return [
        ChunkRef(name, uri, group, *(int(value) for value in values))
        for name, *values in zip(names, starts, counts, num_images, sizes, strict=True)
    ]


def read_chunk(storage: Storage, ref: ChunkRef) -> Chunk:
    """Return the images of a chunk, in order.

    Raises:
        StoreError: the manifest file is missing.
    """
    rows = _row_group(storage, ref.manifest_uri, ref.row_group).slice(ref.first_row, ref.num_items)
    return _chunk(ref, rows)


def planned_chunk(generation: Generation, ref: ChunkRef) -> Chunk:
    """Return the images of a chunk of a generation that is not written yet."""
    start = int(generation.group_offsets[ref.row_group]) + ref.first_row
    return _chunk(ref, generation.units.slice(start, ref.num_items))


def _chunk(ref: ChunkRef, rows: pa.Table) -> Chunk:
    items = rows.select([name for name in UNITS.names if name != "version"]).to_pylist()
    return Chunk(ref.chunk_id, tuple(Item(**item) for item in items))


@lru_cache(maxsize=1)  # consecutive chunks of a worker are mostly in the same row group
def _row_group(storage: Storage, manifest_uri: str, row_group: int) -> pa.Table:
    with storage.open_input(manifest_uri) as source:
        return ParquetFile(source).read_row_group(row_group)
