"""Find the files of a source, recognise their input format and form their ids.

A file's id is its URI below the folder that all entries of the source share, or the full URI if the
file is not below it. So ids are unique, and depend on the job file, not on other files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError
from cvbatch.sources.base import InputFormat
from cvbatch.sources.formats import INPUT_FORMATS
from cvbatch.sources.units import UNITS
from cvbatch.storage import store
from cvbatch.storage.listing import Listing, Progress, list_files
from cvbatch.storage.store import Storage


class SourceFiles(NamedTuple):
    """The files of a source, sorted by image_id (in the order of its UTF-8 bytes), each once."""

    format: InputFormat
    files: pa.Table  # image_id, uri: large_string; size_bytes: int64; version: string
    num_ignored: int  # files of the source that are not of the format


def find_files(
    storage: Storage,
    uris: Sequence[str],
    format_: str,
    sink_uri: str,
    on_progress: Progress | None = None,
) -> SourceFiles:
    """Return the files of a source; those below the sink are left out.

    Args:
        storage: Lists the files.
        uris: Entries of `source.uri`: files, folders, patterns, or lists of files.
        format_: A key of `INPUT_FORMATS`, or "auto".
        sink_uri: The job's sink.
        on_progress: Called with the number of files found so far.

    Raises:
        SourceError: An entry is missing or may not be read, there is no file, or `auto` finds files
            of more than one format.
    """
    try:
        listings = [_list_entry(storage, uri, format_, on_progress) for uri in uris]
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    sink = store.absolute(sink_uri).rstrip("/") + "/"
    if any(listing.base == sink for listing in listings):
        raise SourceError(f"the source and the sink are both {sink}; give the sink its own folder")
    base = shared_folder([listing.base for listing in listings])
    files = pa.concat_tables([listing.files for listing in listings])
    del listings  # so that the table of a large archive is in memory once
    files = _select(files, pc.invert(pc.starts_with(files["uri"], sink)))
    num_listed = files.num_rows
    files, input_format = _of_format(files, format_, uris)
    num_ignored = num_listed - files.num_rows
    columns = dict(zip(files.schema.names, files.columns, strict=True))
    del files
    return SourceFiles(input_format, _with_ids(columns, base), num_ignored)


def _select(table: pa.Table, mask: pa.ChunkedArray) -> pa.Table:
    """Return the rows where the mask is true; the table itself, not a copy, if it is all rows."""
    return table if pc.all(mask, min_count=0).as_py() else table.filter(mask)


def shared_folder(bases: Sequence[str]) -> str:
    """Return the longest common folder, with a trailing "/"; "" if there is none."""
    split = [base.split("/")[:-1] for base in bases]
    shared = []
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    folder = "".join(name + "/" for name in shared)
    return "" if folder.endswith("://") else folder


def _list_entry(storage: Storage, uri: str, format_: str, on_progress: Progress | None) -> Listing:
    if format_ == "auto":
        return list_files(storage, uri, on_progress)
    return INPUT_FORMATS[format_].list_files(storage, uri, on_progress)


def _of_format(files: pa.Table, format_: str, uris: Sequence[str]) -> tuple[pa.Table, InputFormat]:
    source = ", ".join(uris[:3]) + (" ..." if len(uris) > 3 else "")
    if format_ != "auto":
        if not files.num_rows:
            raise SourceError(f"the source {source} holds no file; check source.uri")
        return files, INPUT_FORMATS[format_]
    known = {key: value for key, value in INPUT_FORMATS.items() if value.suffixes}
    masks = {key: _has_suffix(files["uri"], value.suffixes) for key, value in known.items()}
    counts = Counter({key: pc.sum(mask).as_py() or 0 for key, mask in masks.items()})
    present = [key for key, count in counts.items() if count]
    if not present:
        others = f"; the {files.num_rows} files there are of other kinds" if files.num_rows else ""
        *nouns, last = (value.noun for value in known.values())
        raise SourceError(
            f"the source {source} holds no {', '.join(nouns)} or {last}{others}; check source.uri, "
            "or set source.format"
        )
    if len(present) > 1:
        mixture = ", ".join(f"{counts[key]} of format {key}" for key in present)
        suffix = INPUT_FORMATS[counts.most_common(1)[0][0]].suffixes[0]
        raise SourceError(
            f"the source {source} mixes {mixture}; select files of one format in source.uri, such "
            f"as **/*.{suffix}"
        )
    return _select(files, masks[present[0]]), INPUT_FORMATS[present[0]]


def _has_suffix(uris: pa.ChunkedArray, suffixes: Sequence[str]) -> pa.ChunkedArray:
    ends = "|".join(suffix.replace(".", r"\.") for suffix in suffixes)
    return pc.match_substring_regex(uris, rf"(?i)\.(?:{ends})\z")


def _with_ids(columns: dict[str, pa.ChunkedArray], base: str) -> pa.Table:
    """Return the files with their ids, sorted by id, each URI once. Empties `columns`."""
    uris = columns.pop("uri")
    ids = pc.utf8_slice_codeunits(uris, len(base))
    is_below = pc.starts_with(uris, base)
    if not pc.all(is_below, min_count=0).as_py():
        ids = pc.if_else(is_below, ids, uris)
    order = pc.sort_indices(ids)
    ids, uris = ids.combine_chunks().take(order), uris.combine_chunks().take(order)
    sizes = columns.pop("size").combine_chunks().take(order)
    versions = columns.pop("version").combine_chunks().take(order)
    is_first = pa.chunked_array([[True] * min(1, len(ids)), pc.not_equal(ids[1:], ids[:-1])])
    table = pa.table([ids, uris, sizes, versions], UNITS.names[:4])
    return _select(table, is_first)
