"""Units of an input format: image file, slice of a Parquet row group, tar."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError
from cvbatch.storage import store

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
_ROWS_OF_FILE = {"images": 1, "webdataset": 0}  # of a tar only reading tells
_THREADS = 16
_MAX_ROWS_OF_BYTE = 8  # of a Parquet file: the same image over and over takes a bit or two each
_MAX_GROUP_BYTES = 1 << 44  # of one row group's images, unpacked


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
