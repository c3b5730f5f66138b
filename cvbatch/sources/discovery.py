"""What a source holds, as a table of units: image files, slices of Parquet row groups, or tars.

An image's id is its URI below the folder that all entries of the source share, and the whole URI
where it does not lie there; so ids are unique and depend on the job file, not on what arrives.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError
from cvbatch.storage import store
from cvbatch.storage.listing import FILES, Listing, Progress, list_files

UNITS = pa.schema(
    [
        ("image_id", pa.large_string()),
        ("uri", pa.large_string()),
        ("size_bytes", pa.int64()),
        ("version", pa.string()),
        ("row_group", pa.int32()),
        ("row_start", pa.int64()),
        ("num_rows", pa.int64()),
        ("first_row", pa.int64()),
    ]
)
SUFFIXES = {
    "images": ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif"),
    "parquet": ("parquet",),
    "webdataset": ("tar", "tar.gz", "tgz"),
}
_ROWS_OF_FILE = {"images": 1, "webdataset": 0}  # of a tar only reading tells
_THREADS = 16
_MAX_ROWS_OF_BYTE = 8  # of a Parquet file: the same image over and over takes a bit or two each
_MAX_GROUP_BYTES = 1 << 44  # of one row group's images, unpacked


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


def expand(files: pa.Table, format_: str, image_column: str, chunk_images: int) -> pa.Table:
    """Return the units of files in their order; a row group is cut into slices of chunk_images.

    Result: columns of UNITS. Raises SourceError for what is not Parquet or lacks the column.
    """
    if format_ == "parquet":
        return _expand_parquet(files, image_column, chunk_images)
    zeros = np.zeros(files.num_rows, np.int64)
    columns = [*files.columns, zeros, zeros, zeros + _ROWS_OF_FILE[format_], zeros]
    return pa.table(columns, names=UNITS.names).cast(UNITS)


def _expand_parquet(files: pa.Table, image_column: str, chunk_images: int) -> pa.Table:
    uris = files["uri"].to_pylist()
    file_index: list[int] = []
    slices: list[tuple[int, int, int, int, int]] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        footers = pool.map(lambda uri: _row_groups(uri, image_column), uris)
        for index, groups in enumerate(footers):
            found = _slices(groups, chunk_images)
            file_index += [index] * len(found)
            slices += found
    size, group, start, rows, first = np.array(slices, np.int64).reshape(-1, 5).T
    of_file = files.select(["image_id", "uri", "version"]).take(pa.array(file_index, pa.int64()))
    return pa.table(
        [of_file["image_id"], of_file["uri"], size, of_file["version"], group, start, rows, first],
        names=UNITS.names,
    ).cast(UNITS)


def _slices(
    groups: list[tuple[int, int]], chunk_images: int
) -> list[tuple[int, int, int, int, int]]:
    """Return (bytes, row group, its first row, rows, first row in the file) for each slice."""
    slices = []
    first_row = 0
    for group, (rows, size) in enumerate(groups):
        for start in range(0, rows, chunk_images):
            end = min(start + chunk_images, rows)
            share = size * end // rows - size * start // rows
            slices.append((share, group, start, end - start, first_row + start))
        first_row += rows
    return slices


def _row_groups(uri: str, image_column: str) -> list[tuple[int, int]]:
    """Return (rows, bytes of the image column) for each row group of a file."""
    try:
        with store.open_input(uri) as file:
            size = file.seek(0, io.SEEK_END)
            footer = pq.ParquetFile(file)
            metadata, schema = footer.metadata, footer.schema_arrow
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{uri} is not readable as Parquet ({error}); take it out of source.uri"
        ) from None
    _check_column(uri, schema, image_column)
    wanted = [
        i
        for i in range(metadata.num_columns)
        if f"{metadata.schema.column(i).path}.".startswith(f"{image_column}.")
    ]
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    _check_footer(uri, metadata.num_rows, groups, wanted, size)
    return [
        (group.num_rows, sum(group.column(i).total_uncompressed_size for i in wanted))
        for group in groups
    ]


def _check_footer(
    uri: str, num_rows: int, groups: Sequence[Any], wanted: Sequence[int], file_bytes: int
) -> None:
    """Raise SourceError where a footer contradicts itself or the file.

    What it says becomes the plan: rows that are not there would be planned, and failed, one by one.
    """
    columns = [(group.num_rows, group.column(i)) for group in groups for i in wanted]
    if (
        not 0 <= num_rows <= _MAX_ROWS_OF_BYTE * file_bytes
        or any(group.num_rows < 0 for group in groups)
        or sum(group.num_rows for group in groups) != num_rows
        or any(column.num_values != rows for rows, column in columns)
        or any(
            not 0 <= column.total_compressed_size <= file_bytes
            or not 0 <= column.total_uncompressed_size <= _MAX_GROUP_BYTES
            for _, column in columns
        )
    ):
        raise SourceError(
            f"{uri} is a damaged Parquet file: its footer claims {num_rows} rows in "
            f"{len(groups)} row groups, which do not fit one another or the {file_bytes} bytes of "
            "the file; take it out of source.uri, or write it again"
        )


def _check_column(uri: str, schema: pa.Schema, image_column: str) -> None:
    if image_column not in schema.names:
        raise SourceError(
            f"{uri} has no column {image_column!r} but {schema.names}; set source.image_column"
        )
    if schema.names.count(image_column) > 1:
        raise SourceError(f"{uri} has {image_column!r} for the name of more than one column")
    type_ = schema.field(image_column).type
    inner = type_.field("bytes").type if is_struct_of_bytes(type_) else type_
    if not is_binary(inner):
        raise SourceError(
            f"the column {image_column!r} of {uri} is {type_}; it must be binary or a struct with "
            "binary `bytes`; set source.image_column"
        )


def is_struct_of_bytes(type_: pa.DataType) -> bool:
    """Return whether a column is a struct with a field `bytes`."""
    return bool(pa.types.is_struct(type_) and type_.get_field_index("bytes") >= 0)


def is_binary(type_: pa.DataType) -> bool:
    """Return whether a column holds byte strings."""
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(check(type_) for check in checks)
