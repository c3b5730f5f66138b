"""Name a chunk's Parquet file and read its revision."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.storage import store


def part_name(chunk_id: str) -> str:
    """Return the name of the file that holds a chunk's rows."""
    return f"part-{chunk_id}.parquet"


def with_revision(metadata: bytes, revision: int) -> bytes:
    """Return the metadata of a part whose chunk was planned again; the 0th says nothing of it."""
    if not revision:
        return metadata
    document = {**json.loads(metadata), "revision": revision}
    return json.dumps(document, sort_keys=True, ensure_ascii=False).encode()


def read_revision(uri: str) -> int:
    """Return which revision of its chunk a part holds, -1 where it is not readable as a part."""
    with store.open_input(uri) as file:
        try:
            metadata = pq.ParquetFile(file).metadata.metadata or {}
            return int(json.loads(metadata[b"cvbatch"]).get("revision", 0))
        except (pa.ArrowException, OSError, LookupError, ValueError):
            return -1
