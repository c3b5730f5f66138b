"""Parquet files of a store, read in the thread of the caller."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


class ParquetFile(pq.ParquetFile):  # type: ignore[misc]
    """A Parquet file whose columns are decoded one after the other.

    The threads of Arrow may release a buffer that belongs to Python after the caller has its rows.
    If the interpreter exits meanwhile, the process aborts (apache/arrow#34314).
    """

    def __init__(self, source: Any, **options: Any) -> None:
        super().__init__(source, pre_buffer=False, **options)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows."""
        return super().read(columns, use_threads=False)

    def read_row_group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of one row group."""
        return super().read_row_group(number, columns, use_threads=False)

    def read_row_groups(
        self, numbers: Sequence[int], columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Return the rows of some row groups."""
        return super().read_row_groups(numbers, columns, use_threads=False)

    def iter_batches(
        self,
        batch_size: int,
        row_groups: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows in batches of at most `batch_size` rows."""
        yield from super().iter_batches(batch_size, row_groups, columns, use_threads=False)
