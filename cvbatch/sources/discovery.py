"""Find the files of a source, recognise their input format and form their ids.

A file's id is its URI below the folder that all entries of the source share, or the full URI if the
file is not below it. So ids are unique, and depend on the job file, not on other files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError
from cvbatch.core.ignored import MAX_EXAMPLES, Ignored
from cvbatch.core.types import SourceOptions
from cvbatch.sources.base import InputFormat
from cvbatch.sources.file_kinds import (
    METADATA,
    NO_SUFFIX,
    PICTURE_KINDS,
    UNKNOWN,
    are_images,
    kinds_of,
)
from cvbatch.sources.format_choice import Masks, choose_format, has_suffix, masks_of
from cvbatch.sources.formats import INPUT_FORMATS
from cvbatch.sources.units import UNITS
from cvbatch.storage import store
from cvbatch.storage.listing import SKIPPED, Listing, Progress, list_files
from cvbatch.storage.patterns import has_wildcard
from cvbatch.storage.store import Storage


class SourceFiles(NamedTuple):
    """The files of a source, sorted by image_id (in the order of its UTF-8 bytes), each once."""

    format: InputFormat  # with the options of the source
    files: pa.Table  # image_id, uri: large_string; size_bytes: int64; version: string
    ignored: Ignored  # files of the source that are not read


def find_files(
    storage: Storage,
    uris: Sequence[str],
    format_: str,
    sink_uri: str,
    on_progress: Progress | None = None,
    options: SourceOptions | None = None,
) -> SourceFiles:
    """Return the files of a source; those below the sink are left out.

    Args:
        storage: Lists the files.
        uris: Entries of `source.uri`: files, folders, patterns, or lists of files.
        format_: A key of `INPUT_FORMATS`, or "auto".
        sink_uri: The job's sink.
        on_progress: Called with the number of files found so far.
        options: Choose the images; None: the defaults.

    Raises:
        SourceError: An entry is missing or may not be read, there is no file, `auto` finds files
            of more than one format, or an option does not fit the format.
    """
    try:
        listings = _list_entries(storage, uris, format_, on_progress)
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    sink = store.absolute(sink_uri).rstrip("/") + "/"
    if any(listing.base == sink for listing in listings):
        raise SourceError(f"the source and the sink are both {sink}; give the sink its own folder")
    base = shared_folder([listing.base for listing in listings])
    if base.startswith(sink):
        raise SourceError(f"the sink {sink} contains the source {base}; give it its own folder")
    files = pa.concat_tables([listing.files for listing in listings])
    skipped = pa.concat_tables([listing.skipped for listing in listings])
    del listings  # so that the table of a large archive is in memory once
    files = _select(files, pc.invert(pc.starts_with(files["uri"], sink)))
    skipped = skipped.filter(pc.invert(pc.starts_with(skipped["uri"], sink)))
    chosen = _of_format(storage, files, format_, uris, options or SourceOptions())
    del files
    ignored = Ignored()
    others = pa.concat_tables([chosen.others, skipped])
    _count(ignored, others.group_by(["uri", "kind"]).aggregate([]), base)
    columns = dict(zip(chosen.files.schema.names, chosen.files.columns, strict=True))
    input_format = chosen.format
    del chosen
    return SourceFiles(input_format, _with_ids(columns, base), ignored)


def _count(ignored: Ignored, files: pa.Table, base: str) -> None:
    """Count files by kind; files: uri, kind."""
    for kind in files["kind"].unique().to_pylist():
        uris = files.filter(pc.equal(files["kind"], kind))["uri"].combine_chunks()
        first = uris.take(pc.array_sort_indices(uris)[:MAX_EXAMPLES]).to_pylist()
        ignored.add(kind, [uri.removeprefix(base) for uri in first], len(uris))


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


def _list_entries(
    storage: Storage, uris: Sequence[str], format_: str, on_progress: Progress | None
) -> list[Listing]:
    list_entry = list_files if format_ == "auto" else INPUT_FORMATS[format_].list_files
    listings: list[Listing] = []

    def report(count: int) -> None:
        if on_progress is not None:
            done = sum(entry.files.num_rows + entry.skipped.num_rows for entry in listings)
            on_progress(done + count)

    for uri in uris:
        listings.append(list_entry(storage, uri, report))
    return listings


class _Chosen(NamedTuple):
    """The files that are read, with their format, and the others."""

    files: pa.Table  # as FILES
    format: InputFormat
    others: pa.Table  # as SKIPPED


def _of_format(
    storage: Storage, files: pa.Table, format_: str, uris: Sequence[str], options: SourceOptions
) -> _Chosen:
    source = ", ".join(uris[:3]) + (" ..." if len(uris) > 3 else "")
    if format_ != "auto":
        if not files.num_rows:
            raise SourceError(f"the source {source} holds no file; check source.uri")
        input_format = INPUT_FORMATS[format_].configured(options)
        is_read = _of_explicit_format(files["uri"], input_format)
        return _Chosen(_select(files, is_read), input_format, _others(files, is_read))
    masks = masks_of(files["uri"])
    is_listed = [mask for mask in masks.values() if pc.any(mask, min_count=0).as_py()]
    key, kind_of_formats = "images", METADATA
    if is_listed:
        key, kind_of_formats = choose_format(files["uri"], masks, source)
    is_read = masks[key]
    is_other_format = reduce(pc.or_, masks.values())
    others = files.filter(pc.invert(is_other_format))
    kinds = kinds_of(others["uri"])
    if key == "images":
        are_read = _are_read(storage, others["uri"], kinds, options)
        uris_read = others["uri"].filter(are_read).combine_chunks()
        is_read = pc.or_(is_read, pc.is_in(files["uri"], uris_read))
    if not pc.any(is_read, min_count=0).as_py():
        raise SourceError(_nothing_found(source, files, kinds))
    input_format = INPUT_FORMATS[key].configured(options)
    return _Chosen(
        _select(files, is_read), input_format, _others(files, is_read, masks, kind_of_formats)
    )


def _of_explicit_format(uris: pa.ChunkedArray, input_format: InputFormat) -> pa.ChunkedArray:
    """Return which files are read, (N,) bool: all, or of containers those with its suffix, if any.

    A folder of Parquet files or tars also holds notes and statistics.
    """
    everything = pa.chunked_array([pa.repeat(True, len(uris))])
    if not input_format.key:
        return everything
    mask = has_suffix(uris, input_format.suffixes)
    return mask if pc.any(mask, min_count=0).as_py() else everything


def _are_read(
    storage: Storage, uris: pa.ChunkedArray, kinds: pa.ChunkedArray, options: SourceOptions
) -> pa.ChunkedArray:  # (N,) bool
    """Return which files without an image's suffix are planned as images."""
    is_unknown = pc.is_in(kinds, pa.array([UNKNOWN, NO_SUFFIX]))
    unknown = uris.filter(is_unknown)
    are_known_images = are_images(storage, unknown.to_pylist())
    images = unknown.filter(pa.array(are_known_images, pa.bool_())).combine_chunks()
    are_read = pc.is_in(uris, images)
    if options.unreadable == "fail":
        are_read = pc.or_(are_read, pc.is_in(kinds, pa.array(PICTURE_KINDS)))
    return are_read


def _others(
    files: pa.Table,
    is_read: pa.ChunkedArray,
    masks: Masks | None = None,
    kind_of_formats: str = METADATA,
) -> pa.Table:
    """Return the files that are not read, with their kinds."""
    is_other = pc.invert(is_read)
    uris = files["uri"].filter(is_other)
    kinds = kinds_of(uris)
    for mask in (masks or {}).values():
        kinds = pc.if_else(mask.filter(is_other), kind_of_formats, kinds)
    return pa.table([uris, kinds], schema=SKIPPED)


def _nothing_found(source: str, files: pa.Table, kinds: pa.ChunkedArray) -> str:
    *nouns, last = (value.noun for value in INPUT_FORMATS.values() if value.suffixes)
    others = ""
    if not files.num_rows and has_wildcard(source):
        others = "; a folder is read with its subfolders, and in a pattern **/ matches them"
    if files.num_rows:
        counts = Counter(kinds.to_pylist())
        names = ", ".join(f"{kind.replace('_', ' ')} {n:,}" for kind, n in counts.most_common())
        others = f"; files of other kinds there: {names}"
    return (
        f"the source {source} holds no {', '.join(nouns)} or {last}{others}; check source.uri, "
        "or set source.format"
    )


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
