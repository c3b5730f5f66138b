"""Units of work of a source: an image file, a slice of a Parquet row group, a tar."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

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


def units_of_files(files: pa.Table, num_rows: int) -> pa.Table:
    """Return one unit for every file.

    Args:
        files: The first columns of `UNITS`, N rows: image_id, uri, size_bytes, version.
        num_rows: Images of each file; 0 if only reading can count them.

    Returns:
        Columns of `UNITS`, N rows.
    """
    zeros = np.zeros(files.num_rows, np.int64)
    columns = [*files.columns, zeros, zeros, zeros + num_rows, zeros]
    return pa.table(columns, names=UNITS.names).cast(UNITS)


class Slice(NamedTuple):
    """A part of a file that is one unit; the fields are columns of `UNITS`."""

    size_bytes: int
    row_group: int
    row_start: int
    num_rows: int
    first_row: int


def units_of_slices(files: pa.Table, slices: Iterable[Sequence[Slice]]) -> pa.Table:
    """Return the slices of files as units.

    Args:
        files: The first columns of `UNITS`, N rows.
        slices: Of each file, in order.

    Returns:
        Columns of `UNITS`, a row for each slice.
    """
    file_index: list[int] = []
    rows: list[Slice] = []
    for index, of_file in enumerate(slices):
        file_index += [index] * len(of_file)
        rows += of_file
    size, *others = np.array(rows, np.int64).reshape(-1, len(Slice._fields)).T
    names = ["image_id", "uri", "version"]
    image_id, uri, version = files.select(names).take(pa.array(file_index, pa.int64())).columns
    return pa.table([image_id, uri, size, version, *others], names=UNITS.names).cast(UNITS)
