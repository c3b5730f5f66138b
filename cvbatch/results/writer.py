"""Write a chunk's rows as one Parquet file, atomically; the same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.planning.part_files import part_name
from cvbatch.results.schema import COLUMN_TYPES
from cvbatch.storage import store
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage

ROW_GROUP_ROWS = 1024


def write_part(
    storage: Storage,
    sink_uri: str,
    chunk_id: str,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    metadata: bytes,
) -> int:
    """Write the rows as the part file of a chunk; return its size in bytes.

    Raises:
        StoreError: the file could not be written; no partial file is visible.
    """
    data = encode_part(tables, schema, metadata)
    storage.put_bytes(store.join(sink_uri, part_name(chunk_id)), data)
    return len(data)


def encode_part(tables: Iterable[pa.Table], schema: pa.Schema, metadata: bytes) -> pa.Buffer:
    """Return the Parquet file as bytes. Plain types: no extensions, no pandas metadata.

    Parquet has no lists of a fixed size: only for vectors the Arrow schema is stored, from which
    pyarrow and Polars restore their size. Other readers see a list of floats.
    """
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(
        buffer,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=_dictionary_columns(schema),
        store_schema=any(map(pa.types.is_fixed_size_list, schema.types)),
        write_page_index=False,
    ) as writer:
        rows = list(tables)
        table = pa.concat_tables(rows) if rows else schema.empty_table()
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata({"cvbatch": metadata})
    return buffer.getvalue()


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """Return the leaf columns with few distinct values: statuses, names of classes."""
    return ["status", "error.stage", "error.kind", *repeating_leaves(schema)]


def repeating_leaves(schema: pa.Schema) -> list[str]:
    """Return the leaves of predictions that are names, class ids or sizes."""
    return [
        f"{column}.list.element.{leaf.name}"
        for column, kind in COLUMN_TYPES.items()
        if column in schema.names and pa.types.is_list(kind)
        if pa.types.is_struct(kind.value_type)
        for leaf in kind.value_type
        if leaf.name != "counts" and (pa.types.is_string(leaf.type) or pa.types.is_int32(leaf.type))
    ]


def has_failed_rows(storage: Storage, uri: str) -> bool:
    """Return whether a part has a failed row, from the statistics in its footer."""
    with storage.open_input(uri) as file:
        footer = ParquetFile(file).metadata
    column = footer.schema.names.index("status")
    groups = [footer.row_group(i).column(column).statistics for i in range(footer.num_row_groups)]
    return any(statistics.min == "failed" for statistics in groups)
