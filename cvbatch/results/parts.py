"""Read one chunk of a result: footer and rows of its part file, and its images.

`cvbatch.results.result.Result` decides which parts belong to a result.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.errors import SourceError
from cvbatch.core.tasks import CLASS_COLUMNS, TASKS
from cvbatch.core.types import ChunkRef, EncodedImage, Failure
from cvbatch.planning.manifest import read_chunk
from cvbatch.sources.readers import ChunkReader
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage

BATCH_ROWS = 64  # in memory together, with masks and heatmaps
MISSING = Failure("read", "missing", "the source no longer has it")
_TAKEN_ROWS = 256  # rows of one read; 64 is a quarter slower if most rows of a part are taken
_BUFFER_BYTES = 1 << 20  # of one column: a row group's masks are never in memory together
_SIDES = ("x_min", "y_min", "x_max", "y_max")


@dataclass(frozen=True)
class Footer:
    """Footer of a part file: metadata of its job, and columns."""

    document: dict[str, Any]  # JSON of the metadata key `cvbatch`; {} if there is no part
    columns: tuple[str, ...]
    num_rows: int = 0

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the job."""
        return str(self.document.get("fingerprint", ""))

    @cached_property
    def models(self) -> dict[str, dict[str, Any]]:
        """Return the model of each column with a class table: labels, boxes, mask."""
        return {
            column: model
            for model in self.document.get("models", [])
            for column in TASKS[model["task"]].columns
            if column in CLASS_COLUMNS and column in self.columns
        }


def read_footer(storage: Storage, uri: str) -> Footer:
    """Return the footer of a part file.

    Raises:
        SourceError: the file is not a part of a result, or has another schema version.
    """
    with storage.open_input(uri) as source:
        return _open(source, uri)[1]


def _open(source: Any, uri: str) -> tuple[ParquetFile, Footer]:
    try:
        file = ParquetFile(source, buffer_size=_BUFFER_BYTES)
        document = json.loads(file.metadata.metadata[b"cvbatch"])
        version = document["schema_version"]
        if not document["fingerprint"] or not isinstance(document["models"], list):
            raise ValueError("its metadata is incomplete")
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise SourceError(
            f"{uri} is not a part of a prediction's result ({str(error)[:200]}); predict again"
        ) from None
    if version != SCHEMA_VERSION:
        raise SourceError(
            f"{uri} has schema version {version!r}, and this cvbatch reads {SCHEMA_VERSION}; use "
            "the cvbatch that wrote it, or predict again"
        )
    return file, Footer(document, tuple(file.schema_arrow.names), file.metadata.num_rows)


def read_batches(
    storage: Storage,
    uri: str,
    columns: Sequence[str] | None,
    num_rows: int,
    fingerprint: str,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a part file, in order.

    Args:
        uri: part file.
        columns: names of columns or Parquet leaves; None: all columns.
        num_rows: rows of one batch, at most.
        fingerprint: of the job that must have written the part.

    Raises:
        SourceError: the file is damaged, or is a part of another job or schema version.
    """
    with storage.open_input(uri) as source:
        file, footer = _open(source, uri)
        if footer.fingerprint != fingerprint:
            raise SourceError(
                f"{uri} is of another job than the rest of the result; remove files that were "
                "copied there, or predict again into an empty folder"
            )
        with read_errors(uri):
            yield from file.iter_batches(num_rows, columns=columns and list(columns))


def take_rows(
    storage: Storage, uri: str, rows: np.ndarray, columns: Sequence[str] | None
) -> pa.Table:
    """Return some rows of a Parquet file, of a result or of labelled images.

    Row groups without any of the rows, and rows after the last of them, are not read.

    Args:
        uri: Parquet file.
        rows: (n,) int64 numbers of rows, in any order.
        columns: names of columns or Parquet leaves, those that the file has; None: all columns.

    Returns:
        n rows, in the order of `rows`.

    Raises:
        SourceError: the file is damaged.
    """
    with read_errors(uri), storage.open_input(uri) as source:
        file = ParquetFile(source, buffer_size=_BUFFER_BYTES)
        if columns is not None:
            names = set(file.schema_arrow.names)
            columns = [column for column in columns if column.split(".")[0] in names]
        sizes = np.array([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        ends = np.cumsum(sizes)
        groups, index = np.unique(np.searchsorted(ends, rows, "right"), return_inverse=True)
        skipped = (ends - sizes)[groups] - np.cumsum([0, *sizes[groups]])[:-1]  # rows before each
        positions = rows - skipped[index]  # in the row groups that are read
        chosen, order = np.unique(positions, return_inverse=True)
        tables, start = [file.read_row_groups([], columns)], 0
        for batch in file.iter_batches(_TAKEN_ROWS, groups.tolist(), columns):
            if start > chosen[-1]:
                break
            in_batch = chosen[(start <= chosen) & (chosen < start + len(batch))] - start
            tables.append(pa.Table.from_batches([batch.take(pa.array(in_batch))]))
            start += len(batch)
        return pa.concat_tables(tables).take(pa.array(order))


@contextmanager
def read_errors(uri: str) -> Iterator[None]:
    """Convert errors of reading Parquet to a SourceError that names the file or folder."""
    try:
        yield
    except (pa.ArrowException, OSError, LookupError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{uri} cannot be read as Parquet ({str(error)[:200]}); restore the file, or write it "
            "again"
        ) from None


def box_corners(boxes: Sequence[Mapping[str, Any]] | None) -> np.ndarray:  # (M, 4) float64
    """Return boxes as half-open xyxy, in their order; None: no box."""
    return np.array([[box[side] for side in _SIDES] for box in boxes or ()]).reshape(-1, 4)


def read_images(
    ref: ChunkRef, reader: ChunkReader, max_bytes: int, image_ids: Collection[str] | None = None
) -> Generator[EncodedImage, None, None]:
    """Yield the encoded images of a chunk in the order of its rows, read from the source.

    Args:
        reader: of the result's source.
        max_bytes: of one encoded image; a larger one fails as too_large.
        image_ids: images to read; None: all. As little as possible of the others is read: a tar
            is read from its beginning up to the last of the images.

    Raises:
        StoreError: the store does not respond, or the manifest is missing.
    """
    chunk = read_chunk(reader.storage, ref)
    if image_ids is None:
        yield from reader.read(chunk, max_bytes)
    else:
        yield from reader.read_some(chunk, image_ids, max_bytes)
