"""Units of work of a source: an image file, a slice of a Parquet row group, a tar."""

from __future__ import annotations

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
