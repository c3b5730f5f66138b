"""Input format: Parquet files with a column of encoded images, binary or struct {bytes, path}."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError, StoreError
from cvbatch.core.types import EncodedImage, Failure, Item
from cvbatch.sources.base import InputFormat, ReadItems, ReadOptions, image_id_in, read_failure
from cvbatch.sources.units import UNITS
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage

_BUFFER_BYTES = 4 << 20
_BATCH_ROWS = 16
_THREADS = 16
_MAX_ROWS_PER_BYTE = 8  # of a Parquet file; repeated images take one or two bits each
_MAX_GROUP_BYTES = 1 << 44  # of one row group's images, uncompressed


class Parquet(InputFormat):
    """Parquet files; an image's key is the number of its row in the file."""

    name = "parquet"
    noun = "Parquet file"
    suffixes = ("parquet",)
    key = "row"
    is_split = True

    def expand(
        self, storage: Storage, files: pa.Table, image_column: str, chunk_images: int
    ) -> pa.Table:
        """Return slices of row groups, of at most `chunk_images` rows; see `InputFormat.expand`.

        Raises:
            SourceError: A file is not Parquet, is damaged, or lacks the column.
        """
        uris = files["uri"].to_pylist()
        file_index: list[int] = []
        slices: list[tuple[int, int, int, int, int]] = []
        with ThreadPoolExecutor(_THREADS) as pool:
            footers = pool.map(lambda uri: _row_groups(storage, uri, image_column), uris)
            for index, groups in enumerate(footers):
                of_file = _slices(groups, chunk_images)
                file_index += [index] * len(of_file)
                slices += of_file
        size, group, start, rows, first = np.array(slices, np.int64).reshape(-1, 5).T
        names = ["image_id", "uri", "version"]
        image_id, uri, version = files.select(names).take(pa.array(file_index, pa.int64())).columns
        columns = [image_id, uri, size, version, group, start, rows, first]
        return pa.table(columns, names=UNITS.names).cast(UNITS)

    def new_reader(self, storage: Storage) -> ReadItems:
        """Return a function that reads slices; see `_SliceReader`."""
        return _SliceReader(storage).read

    def select(self, items: Sequence[Item], image_ids: Collection[str]) -> tuple[Item, ...]:
        """Return the rows of the images as slices, adjacent rows as one slice."""
        return tuple(part for item in items for part in _runs(item, image_ids))

    def reading(self, image_column: str) -> dict[str, str]:
        """Return the format and the column."""
        return {**super().reading(image_column), "image_column": image_column}


def _runs(item: Item, image_ids: Collection[str]) -> Iterator[Item]:
    start = 0
    for index in range(item.num_rows + 1):
        if index < item.num_rows and image_id_in(item, item.first_row + index) in image_ids:
            continue
        if index > start:
            yield replace(
                item,
                row_start=item.row_start + start,
                first_row=item.first_row + start,
                num_rows=index - start,
            )
        start = index + 1


class _RowGroup:
    """The image column of one row group, read forwards, and the number of rows read so far."""

    def __init__(self, storage: Storage, uri: str, row_group: int, column: str) -> None:
        self.key = (uri, row_group, column)
        self.position = 0
        self._values = _image_values(storage, uri, row_group, column)

    def skip_to(self, position: int) -> None:
        """Read and drop the rows before a position."""
        deque(islice(self, position - self.position), maxlen=0)

    def __iter__(self) -> Iterator[Any]:  # binary scalars; null if there is no image
        return self

    def __next__(self) -> Any:
        value = next(self._values)
        self.position += 1
        return value


def _image_values(storage: Storage, uri: str, row_group: int, column: str) -> Iterator[Any]:
    """Yield the image scalars of a row group, a page in memory at a time."""
    with closing(storage.open_input(uri)) as source:
        file = ParquetFile(source, buffer_size=_BUFFER_BYTES)
        in_struct = is_struct_of_bytes(file.schema_arrow.field(column).type)
        leaf = f"{column}.bytes" if in_struct else column
        for batch in file.iter_batches(_BATCH_ROWS, [row_group], [leaf]):
            array = batch.column(0)
            yield from pc.struct_field(array, "bytes") if in_struct else array


class _SliceReader:
    """Reads slices of row groups; stores the row group in which the last slice ended.

    The next slice usually continues there, so that the rows before it are not decoded again.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        # A deque, because its append and pop are atomic: of two threads only one gets it.
        self._last: deque[_RowGroup] = deque(maxlen=1)

    def read(self, items: Sequence[Item], options: ReadOptions) -> Iterator[EncodedImage]:
        """Yield as many rows as were planned, even if the file has changed since."""
        for item in items:
            yield from self._read_slice(item, options)

    def _read_slice(self, item: Item, options: ReadOptions) -> Iterator[EncodedImage]:
        num_read = 0
        failure = Failure("read", "missing", f"{item.uri} has fewer rows than when it was planned")
        try:
            for value in self._values(item, options.image_column):
                yield _image_of_row(item, num_read, value, options.max_bytes)
                num_read += 1
        except StoreError as error:
            failure = read_failure(error)
        except (pa.ArrowException, OSError, LookupError) as error:
            why = f"{item.uri} is not readable as Parquet: {error}"
            failure = Failure("read", "corrupt", why)
        for index in range(num_read, item.num_rows):
            yield EncodedImage(image_id_in(item, item.first_row + index), item.uri, b"", failure)

    def _values(self, item: Item, column: str) -> Iterator[bytes | None]:
        rows = self._take(item, column)
        end = item.row_start + item.num_rows
        for value in islice(rows, item.num_rows):
            if rows.position == end:  # before the last yield, after which the caller may stop
                self._last.append(rows)
            yield value.as_py()

    def _take(self, item: Item, column: str) -> _RowGroup:
        """Return the row group of an item, at the item's first row."""
        key = (item.uri, item.row_group, column)
        try:
            rows = self._last.pop()
        except IndexError:
            rows = _RowGroup(self._storage, *key)
        if rows.key != key or rows.position > item.row_start:
            rows = _RowGroup(self._storage, *key)
        rows.skip_to(item.row_start)
        return rows


def _image_of_row(item: Item, index: int, data: bytes | None, max_bytes: int) -> EncodedImage:
    image_id = image_id_in(item, item.first_row + index)
    if data is None:
        failure = Failure("read", "missing", "the image column is null")
    elif len(data) > max_bytes:
        failure = Failure("read", "too_large", f"{len(data)} bytes; the limit is {max_bytes}")
    else:
        return EncodedImage(image_id, item.uri, data)
    return EncodedImage(image_id, item.uri, b"", failure)


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


def _row_groups(storage: Storage, uri: str, image_column: str) -> list[tuple[int, int]]:
    """Return (rows, uncompressed bytes of the image column) for each row group of a file."""
    try:
        with storage.open_input(uri) as file:
            size = file.seek(0, io.SEEK_END)
            footer = ParquetFile(file)
            metadata, schema = footer.metadata, footer.schema_arrow
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{uri} is not readable as Parquet ({error}); remove it from source.uri"
        ) from None
    _check_column(uri, schema, image_column)
    leaves = [
        i
        for i in range(metadata.num_columns)
        if f"{metadata.schema.column(i).path}.".startswith(f"{image_column}.")
    ]
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    _check_footer(uri, metadata.num_rows, groups, leaves, size)
    return [
        (group.num_rows, sum(group.column(i).total_uncompressed_size for i in leaves))
        for group in groups
    ]


def _check_footer(
    uri: str, num_rows: int, groups: Sequence[Any], leaves: Sequence[int], file_bytes: int
) -> None:
    """Raise SourceError if a footer contradicts itself or the file; leaves: column numbers.

    The plan is made from the footer: rows that do not exist would be planned and fail one by one.
    """
    columns = [(group.num_rows, group.column(i)) for group in groups for i in leaves]
    if (
        not 0 <= num_rows <= _MAX_ROWS_PER_BYTE * file_bytes
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
            f"{len(groups)} row groups, which contradict one another or the {file_bytes} bytes of "
            "the file; remove it from source.uri, or write it again"
        )


def _check_column(uri: str, schema: pa.Schema, image_column: str) -> None:
    if image_column not in schema.names:
        raise SourceError(
            f"{uri} has no column {image_column!r}; set source.image_column to one of "
            f"{schema.names}"
        )
    if schema.names.count(image_column) > 1:
        raise SourceError(f"{uri} has more than one column {image_column!r}; rename all but one")
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
