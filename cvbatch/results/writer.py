"""Writes a chunk's rows as one Parquet file: the same rows are the same bytes, all or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.storage import atomic, store

ROW_GROUP_ROWS = 1024


def part_name(chunk_id: str) -> str:
    """Return the name of the file that holds a chunk's rows."""
    return f"part-{chunk_id}.parquet"


def write_part(
    sink_uri: str, chunk_id: str, tables: Iterable[pa.Table], schema: pa.Schema, metadata: bytes
) -> int:
    """Put the tables' rows into the sink as the chunk's file; return its size in bytes.

    Raises:
        StoreError: the file could not be put; nothing of it is then visible.
    """
    data = encode_part(tables, schema, metadata)
    store.put_bytes(store.join(sink_uri, part_name(chunk_id)), data)
    return len(data)


def encode_part(tables: Iterable[pa.Table], schema: pa.Schema, metadata: bytes) -> pa.Buffer:
    """Return the Parquet file as bytes. Plain types: no Arrow schema, no pandas metadata."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(
        buffer,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=_dictionary_columns(schema),
        store_schema=False,
        write_page_index=False,
    ) as writer:
        rows = list(tables)
        table = pa.concat_tables(rows) if rows else schema.empty_table()
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata({"cvbatch": metadata})
    return buffer.getvalue()


def revised(metadata: bytes, revision: int) -> bytes:
    """Return the metadata of a part whose chunk was planned again; the 0th says nothing of it."""
    if not revision:
        return metadata
    document = {**json.loads(metadata), "revision": revision}
    return json.dumps(document, sort_keys=True, ensure_ascii=False).encode()


def revision_of(uri: str) -> int:
    """Return which revision of its chunk a part holds, -1 where it is not readable as a part."""
    with store.open_input(uri) as file:
        try:
            metadata = pq.ParquetFile(file).metadata.metadata or {}
            return int(json.loads(metadata[b"cvbatch"]).get("revision", 0))
        except (pa.ArrowException, OSError, LookupError, ValueError):
            return -1


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    """Return the leaf columns whose few values repeat: statuses, names of classes."""
    columns = ["status", "error.stage", "error.kind"]
    for name in ("labels", "boxes", "mask_areas"):
        if name in schema.names:
            columns += [f"{name}.list.element.label", f"{name}.list.element.class_id"]
    if "heatmaps" in schema.names:
        leaves = ("model", "layer", "label", "class_id", "height", "width")
        columns += [f"heatmaps.list.element.{leaf}" for leaf in leaves]
    return columns


def has_failed_rows(uri: str) -> bool:
    """Say whether a part holds a failed row, from the statistics in its footer."""
    with store.open_input(uri) as file:
        footer = pq.ParquetFile(file).metadata
    column = footer.schema.names.index("status")
    groups = [footer.row_group(i).column(column).statistics for i in range(footer.num_row_groups)]
    return any(statistics.min == "failed" for statistics in groups)


def remove_leftovers(sink_uri: str) -> None:
    """Remove the temporary files that killed writers left in a local sink; a store has none."""
    place = store.Place.of(sink_uri)
    if place.scheme != "file":
        return
    folder = Path(place.path)
    atomic.remove_leftovers(folder, ".part-")
    for below, _, _ in os.walk(folder / "_cvbatch"):
        atomic.remove_leftovers(Path(below), ".")
