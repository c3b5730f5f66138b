"""Changed and removed input files: plan their chunks again, as revisions.

A chunk keeps its id; only its units change. A removed file keeps its units, so that its rows stay.
If a file with several units changed inside, units that no longer exist leave their chunk, and units
that are new go into new chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.types import ChunkRef
from cvbatch.planning import manifest
from cvbatch.planning.manifest import StoredManifest
from cvbatch.sources.base import InputFormat
from cvbatch.sources.discovery import SourceFiles
from cvbatch.sources.units import UNITS
from cvbatch.storage.store import Storage

_GONE = "gone"  # version of a removed file; if the file returns, it has changed


class Changes(NamedTuple):
    """Differences between the files of a source and the manifest."""

    new: pa.Table  # files that are not in the manifest
    changed: pa.Table  # files whose version or size differs from the manifest
    affected: list[ChunkRef]  # chunks with changed files, in the order of the manifest
    num_removed: int  # files of the manifest that are not in the source


def compare_files(source: SourceFiles, stored: StoredManifest) -> Changes:
    """Return new, changed and removed files. A file of unknown version, "", never changes."""
    files = source.files
    index = pc.index_in(files["uri"], stored.units["uri"].combine_chunks())
    is_known = pc.is_valid(index)
    current = files.select(["version", "size_bytes"]).filter(is_known)
    before = stored.units.select(["version", "size_bytes"]).take(index.drop_null())
    differs = pc.not_equal(before["version"], current["version"])
    if not source.format.is_split:  # otherwise the size is that of a unit, not of the file
        differs = pc.or_(differs, pc.not_equal(before["size_bytes"], current["size_bytes"]))
    for versions in (before["version"], current["version"]):
        differs = pc.and_(differs, pc.not_equal(versions, ""))
    positions = np.flatnonzero(is_known)[differs.to_numpy()]
    changed = files.take(pa.array(positions))
    return Changes(
        new=files.filter(pc.invert(is_known)),
        changed=changed,
        affected=_chunks_with(changed, stored),
        num_removed=num_files(stored.units, source.format) - before.num_rows,
    )


def num_files(units: pa.Table, input_format: InputFormat) -> int:
    """Return the number of files that the units are in."""
    return len(units["uri"].unique()) if input_format.is_split else int(units.num_rows)


def _chunks_with(changed: pa.Table, stored: StoredManifest) -> list[ChunkRef]:
    if not changed.num_rows:
        return []
    is_changed = pc.is_in(stored.units["uri"], changed["uri"].combine_chunks())
    return stored.chunks_of(np.flatnonzero(is_changed))


class Revision(NamedTuple):
    """The affected chunks with their current units."""

    units: pa.Table  # UNITS, N rows
    offsets: np.ndarray  # (C + 1,) int64: chunk c has the units offsets[c]:offsets[c + 1]
    chunk_ids: list[str]  # C
    emptied: tuple[str, ...]  # ids of affected chunks without units
    added: pa.Table  # UNITS of changed files that are in no chunk yet


def revise(
    storage: Storage, changes: Changes, source: SourceFiles, image_column: str, chunk_images: int
) -> Revision:
    """Return the chunks with changed files, planned again.

    A unit is the same if its file, row group and first row are. Raises as `InputFormat.expand`.
    """
    if not changes.affected:
        nothing = UNITS.empty_table()
        return Revision(nothing, np.zeros(1, np.int64), [], (), nothing)
    before = manifest.units_of(storage, changes.affected)
    is_changed = pc.is_in(before["uri"], changes.changed["uri"].combine_chunks())
    slice_images = _slice_images(before.filter(is_changed)) or chunk_images
    current = source.format.expand(storage, changes.changed, image_column, slice_images)
    keys = _unit_keys(before)
    index = pc.index_in(keys, _unit_keys(current))  # null: file unchanged, or unit removed
    is_kept = pc.or_(pc.is_valid(index), pc.invert(is_changed))
    updated = {
        name: pc.coalesce(current[name].combine_chunks().take(index), before[name].combine_chunks())
        for name in ("size_bytes", "version", "num_rows", "first_row")
    }
    is_listed = pc.is_in(before["uri"], _intersection(source.files["uri"], before["uri"]))
    updated["version"] = pc.if_else(is_listed, updated["version"], _GONE)
    units = pa.table({name: updated.get(name, before[name]) for name in UNITS.names}).cast(UNITS)
    kept_mask = is_kept.to_numpy(zero_copy_only=False)
    offsets, chunk_ids, emptied = _offsets(changes.affected, kept_mask)
    is_added = pc.invert(pc.is_in(_unit_keys(current), keys))
    return Revision(units.filter(is_kept), offsets, chunk_ids, emptied, current.filter(is_added))


def _slice_images(units: pa.Table) -> int | None:
    """Return the images of a slice with which files were planned; None if none was sliced."""
    starts = units["row_start"].to_numpy()
    return int(units["num_rows"].to_numpy()[starts >= 0].max()) if (starts > 0).any() else None


def _unit_keys(units: pa.Table) -> pa.Array:
    """Return a string that identifies each unit."""
    numbers = [units[name].cast(pa.large_string()) for name in ("row_group", "row_start")]
    separator = pa.scalar("\n", pa.large_string())
    keys = pc.binary_join_element_wise(*numbers, units["uri"], separator)
    return keys.combine_chunks()


def _intersection(listed: pa.ChunkedArray, uris: pa.ChunkedArray) -> pa.Array:
    """Return which of a few URIs are among all listed ones."""
    return listed.filter(pc.is_in(listed, uris.combine_chunks())).combine_chunks()


def _offsets(
    affected: list[ChunkRef],
    is_kept: np.ndarray,  # (N,) bool, of all units of these chunks
) -> tuple[np.ndarray, list[str], tuple[str, ...]]:
    """Return offsets and ids of the chunks that keep units, and the ids of the other chunks."""
    chunk_index = np.repeat(np.arange(len(affected)), [ref.num_items for ref in affected])
    counts = np.bincount(chunk_index[is_kept], minlength=len(affected))
    ids = [ref.chunk_id for ref in affected]
    offsets = np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int64)
    return (
        offsets,
        [ids[i] for i in np.flatnonzero(counts)],
        tuple(ids[i] for i in np.flatnonzero(counts == 0)),
    )
