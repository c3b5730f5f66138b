"""What became of the files that were planned before, and the chunks as those files are now.

A chunk keeps its id: only its units change. A file that is gone keeps its units, so that its rows
stay; of a file whose inside moved, units that are gone leave their chunk and further ones are new.
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

_GONE = "gone"  # the version of a file that was not there: should it come back, it has changed


class Changes(NamedTuple):
    """The files of a source beside those known."""

    new: pa.Table  # files no planning knew
    changed: pa.Table  # files that have another version or size than when they were planned
    touched: list[ChunkRef]  # the chunks that hold changed files, in the manifest's order
    num_removed: int  # files that are not in the source any more


def compare_files(found: SourceFiles, known: StoredManifest) -> Changes:
    """Return what is new, changed and gone. A version "" is not known: it never changes."""
    files = found.files
    at = pc.index_in(files["uri"], known.units["uri"].combine_chunks())
    is_known = pc.is_valid(at)
    now = files.select(["version", "size_bytes"]).filter(is_known)
    was = known.units.select(["version", "size_bytes"]).take(at.drop_null())
    differs = pc.not_equal(was["version"], now["version"])
    if not found.format.is_split:  # else the size is the unit's, not the file's
        differs = pc.or_(differs, pc.not_equal(was["size_bytes"], now["size_bytes"]))
    for versions in (was["version"], now["version"]):
        differs = pc.and_(differs, pc.not_equal(versions, ""))
    positions = np.flatnonzero(is_known)[differs.to_numpy()]
    changed = files.take(pa.array(positions))
    return Changes(
        new=files.filter(pc.invert(is_known)),
        changed=changed,
        touched=_touched(changed, known),
        num_removed=num_files(known.units, found.format) - was.num_rows,
    )


def num_files(units: pa.Table, input_format: InputFormat) -> int:
    """Return the number of files that units are of."""
    return len(units["uri"].unique()) if input_format.is_split else int(units.num_rows)


def _touched(changed: pa.Table, known: StoredManifest) -> list[ChunkRef]:
    if not changed.num_rows:
        return []
    is_touched = pc.is_in(known.units["uri"], changed["uri"].combine_chunks())
    return known.holding(np.flatnonzero(is_touched))


class Revision(NamedTuple):
    """The touched chunks as their files are now."""

    units: pa.Table  # UNITS, N rows
    offsets: np.ndarray  # (C + 1,) int64: chunk c holds the units offsets[c]:offsets[c + 1]
    chunk_ids: list[str]  # C
    emptied: tuple[str, ...]  # ids of touched chunks that hold nothing any more
    further: pa.Table  # UNITS: of changed files, in no chunk yet


def revise(changes: Changes, found: SourceFiles, image_column: str, chunk_images: int) -> Revision:
    """Return the chunks that hold changed files, planned again.

    A unit is the same where its file, row group and first row are. Raises as `InputFormat.expand`.
    """
    if not changes.touched:
        nothing = UNITS.empty_table()
        return Revision(nothing, np.zeros(1, np.int64), [], (), nothing)
    now = found.format.expand(changes.changed, image_column, chunk_images)
    was = manifest.units_of(changes.touched)
    keys = _keys(was)
    at = pc.index_in(keys, _keys(now))  # null: the file did not change, or the unit is gone
    is_here = pc.or_(
        pc.is_valid(at), pc.invert(pc.is_in(was["uri"], changes.changed["uri"].combine_chunks()))
    )
    told = {
        name: pc.coalesce(now[name].combine_chunks().take(at), was[name].combine_chunks())
        for name in ("size_bytes", "version", "num_rows", "first_row")
    }
    is_listed = pc.is_in(was["uri"], _those_of(found.files["uri"], was["uri"]))
    told["version"] = pc.if_else(is_listed, told["version"], _GONE)
    units = pa.table({name: told.get(name, was[name]) for name in UNITS.names}).cast(UNITS)
    offsets, chunk_ids, emptied = _offsets(changes.touched, is_here.to_numpy(zero_copy_only=False))
    is_further = pc.invert(pc.is_in(_keys(now), keys))
    return Revision(units.filter(is_here), offsets, chunk_ids, emptied, now.filter(is_further))


def _keys(units: pa.Table) -> pa.Array:
    """Return what tells a unit from all others, as one string."""
    numbers = [units[name].cast(pa.large_string()) for name in ("row_group", "row_start")]
    separator = pa.scalar("\n", pa.large_string())
    keys = pc.binary_join_element_wise(*numbers, units["uri"], separator)
    return keys.combine_chunks()


def _those_of(listed: pa.ChunkedArray, some: pa.ChunkedArray) -> pa.Array:
    """Return which of a few URIs are among all that are listed."""
    return listed.filter(pc.is_in(listed, some.combine_chunks())).combine_chunks()


def _offsets(
    touched: list[ChunkRef], is_here: np.ndarray
) -> tuple[np.ndarray, list[str], tuple[str, ...]]:
    """Return the offsets and ids of the chunks that still hold something, the ids of the others."""
    chunk_index = np.repeat(np.arange(len(touched)), [ref.num_items for ref in touched])
    counts = np.bincount(chunk_index[is_here], minlength=len(touched))
    ids = [ref.chunk_id for ref in touched]
    offsets = np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int64)
    return (
        offsets,
        [ids[i] for i in np.flatnonzero(counts)],
        tuple(ids[i] for i in np.flatnonzero(counts == 0)),
    )
