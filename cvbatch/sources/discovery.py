"""What a source holds, as a table of units: image files, slices of Parquet row groups, or tars.

An image's id is its URI below the folder that all entries of the source share, and the whole URI
where it does not lie there; so ids are unique and depend on the job file, not on what arrives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError
from cvbatch.images.signatures import SUFFIXES
from cvbatch.sources.units import UNITS
from cvbatch.storage import store
from cvbatch.storage.listing import FILES, Listing, Progress, list_files


class SourceFiles(NamedTuple):
    """The files to be read, sorted by image_id (in the order of its UTF-8 bytes), each once."""

    format: str  # "images" | "parquet" | "webdataset"
    files: pa.Table  # image_id, uri: large_string; size_bytes: int64; version: string
    num_ignored: int  # files found that are not of the format


def find_files(
    uris: Sequence[str], format_: str, sink_uri: str, on_progress: Progress | None = None
) -> SourceFiles:
    """Return the files that the entries of a source stand for; what lies in the sink is left out.

    Raises SourceError where an entry is missing or denied, nothing is found, or `auto` finds a
    mixture.
    """
    try:
        listings = [_list_entry(uri, format_, on_progress) for uri in uris]
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    sink = store.absolute(sink_uri).rstrip("/") + "/"
    if any(listing.base == sink for listing in listings):
        raise SourceError(f"the source and the sink are both {sink}; give the sink its own folder")
    base = shared_folder([listing.base for listing in listings])
    files = pa.concat_tables([listing.files for listing in listings])
    del listings  # a large archive is not held twice
    files = _keep(files, pc.invert(pc.starts_with(files["uri"], sink)))
    num_found = files.num_rows
    files, format_ = _of_format(files, format_, uris)
    num_ignored = num_found - files.num_rows
    columns = dict(zip(files.schema.names, files.columns, strict=True))
    del files
    return SourceFiles(format_, _identified(columns, base), num_ignored)


def _keep(table: pa.Table, wanted: pa.ChunkedArray) -> pa.Table:
    """Return the rows wanted; the table itself, not a copy, where that is all of them."""
    return table if pc.all(wanted, min_count=0).as_py() else table.filter(wanted)


def shared_folder(bases: Sequence[str]) -> str:
    """Return the longest folder, ending in "/", that all begin with; "" where there is none."""
    split = [base.split("/")[:-1] for base in bases]
    shared = []
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    folder = "".join(name + "/" for name in shared)
    return "" if folder.endswith("://") else folder


def _list_entry(uri: str, format_: str, on_progress: Progress | None) -> Listing:
    return _read_manifest(uri) if format_ == "manifest" else list_files(uri, on_progress)


def _of_format(files: pa.Table, format_: str, uris: Sequence[str]) -> tuple[pa.Table, str]:
    source = ", ".join(uris[:3]) + (" ..." if len(uris) > 3 else "")
    if format_ != "auto":
        if not files.num_rows:
            raise SourceError(f"the source {source} holds no file; check source.uri")
        return files, "images" if format_ == "manifest" else format_
    masks = {kind: _has_suffix(files["uri"], ends) for kind, ends in SUFFIXES.items()}
    counts = Counter({kind: pc.sum(mask).as_py() or 0 for kind, mask in masks.items()})
    kinds = [kind for kind, count in counts.items() if count]
    if not kinds:
        others = f"; the {files.num_rows} files there are of other kinds" if files.num_rows else ""
        raise SourceError(
            f"the source {source} holds no image, Parquet file or tar{others}; check source.uri, "
            "or say source.format"
        )
    if len(kinds) > 1:
        mixture = ", ".join(f"{counts[kind]} of format {kind}" for kind in kinds)
        raise SourceError(
            f"the source {source} mixes {mixture}; name files of one kind in source.uri, such as "
            f"**/*.{SUFFIXES[counts.most_common(1)[0][0]][0]}"
        )
    return _keep(files, masks[kinds[0]]), kinds[0]


def _has_suffix(uris: pa.ChunkedArray, suffixes: Sequence[str]) -> pa.ChunkedArray:
    ends = "|".join(suffix.replace(".", r"\.") for suffix in suffixes)
    return pc.match_substring_regex(uris, rf"(?i)\.(?:{ends})\z")


def _identified(columns: dict[str, pa.ChunkedArray], base: str) -> pa.Table:
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
    return _keep(table, is_first)


def _read_manifest(uri: str) -> Listing:
    """Return the URIs a manifest lists; those without a scheme or leading / are relative to it.

    Their sizes are not asked for: 0.
    """
    place = store.absolute(uri)
    base = place[: place.rindex("/") + 1]
    lines = _parquet_lines(place) if place.endswith(".parquet") else _text_lines(place)
    has_scheme = pc.match_substring_regex(lines, r"^[A-Za-z][A-Za-z0-9+.-]*://")
    is_known = pc.match_substring_regex(lines, r"^(?:s3|gs)://[^@/]+/")
    bad = lines.filter(pc.and_(has_scheme, pc.invert(is_known)))
    if len(bad):
        raise SourceError(
            f"the manifest {uri} names {bad[0].as_py()!r}, not an s3:// or gs:// URI or a path; "
            "credentials belong into the environment"
        )
    is_whole = pc.or_(is_known, pc.starts_with(lines, "/"))
    folder, nothing = (pa.scalar(text, pa.large_string()) for text in (base, ""))
    uris = pc.if_else(is_whole, lines, pc.binary_join_element_wise(folder, lines, nothing))
    none = np.zeros(len(uris), np.int64)
    versions = pa.repeat(pa.scalar("", pa.string()), len(uris))
    return Listing(base, pa.table([uris, pa.array(none), versions], schema=FILES))


def _text_lines(uri: str) -> pa.Array:
    try:
        text = store.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceError(f"the manifest {uri} is not text; write one URI a line, UTF-8") from None
    lines = pc.split_pattern(pa.array([text], pa.large_string()), "\n").flatten()
    lines = pc.utf8_rtrim(lines, "\r")
    is_blank = pc.match_substring_regex(lines, r"^\s*(?:#|\z)")
    return lines.filter(pc.invert(is_blank))


def _parquet_lines(uri: str) -> pa.Array:
    with store.open_input(uri) as file:
        try:
            reader = pq.ParquetFile(file)
            strings = [f.name for f in reader.schema_arrow if _is_string(f.type)]
            if "uri" not in strings and len(strings) != 1:
                raise SourceError(
                    f"the manifest {uri} has the columns {reader.schema_arrow.names}; it needs a "
                    "string column `uri`, or one string column alone"
                )
            name = "uri" if "uri" in strings else strings[0]
            column = reader.read([name])[name].cast(pa.large_string()).combine_chunks()
        except pa.ArrowInvalid as error:
            raise SourceError(f"the manifest {uri} is not readable as Parquet: {error}") from None
    return column.drop_null()


def _is_string(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
    )
