"""Name the Parquet file of a chunk (a part), and read its revision."""

from __future__ import annotations

import json

import pyarrow as pa

from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage


def part_name(chunk_id: str) -> str:
    """Return the file name of a chunk's rows."""
    return f"part-{chunk_id}.parquet"


def with_revision(metadata: bytes, revision: int) -> bytes:
    """Return the metadata of a part with its revision; revision 0 is not stored."""
    if not revision:
        return metadata
    document = {**json.loads(metadata), "revision": revision}
    return json.dumps(document, sort_keys=True, ensure_ascii=False).encode()


def read_revision(storage: Storage, uri: str) -> int:
    """Return the revision of a part; −1 if the file is not a readable part."""
    with storage.open_input(uri) as file:
        try:
            metadata = ParquetFile(file).metadata.metadata or {}
            return int(json.loads(metadata[b"cvbatch"]).get("revision", 0))
        except (pa.ArrowException, OSError, LookupError, ValueError):
            return -1
