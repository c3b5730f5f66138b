"""Input format: Parquet files with a column of encoded images, binary or struct {bytes, path}."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import islice, repeat
from typing import Any, NamedTuple

import pyarrow as pa

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError, StoreError
from cvbatch.core.types import EncodedImage, Failure, Item, SourceOptions
from cvbatch.sources.base import InputFormat, ReadItems, ReadOptions, image_id_in, read_failure
from cvbatch.sources.image_column import Cell, ImageColumn, find_image_column
from cvbatch.sources.parquet_columns import (
    check_columns,
    kept_fields,
    read_beside,
    read_row_group,
    row_keys,
)
from cvbatch.sources.units import Slice, units_of_slices
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage

_BUFFER_BYTES = 4 << 20
_BATCH_ROWS = 16
_THREADS = 16
_MAX_ROWS_PER_BYTE = 8  # of a Parquet file; repeated images take one or two bits each
_MAX_GROUP_BYTES = 1 << 44  # of one row group's images, uncompressed
_LISTS = -1  # `row_start` of a slice whose rows are lists: a complete row group


class Parquet(InputFormat):
    """Parquet files; an image's key is the number of its row in the file, or its id column.

    The images of a list have the keys `row#0`, `row#1`, ...
    """

    name = "parquet"
    noun = "Parquet file"
    suffixes = ("parquet",)
    key = "row"
    is_split = True
    accepts = ("id_column", "keep_columns")

    def expand(
        self, storage: Storage, files: pa.Table, image_column: str, chunk_images: int
    ) -> pa.Table:
        """Return slices of row groups, of at most `chunk_images` rows; see `InputFormat.expand`.

        A row group of lists is one slice, because only the number of its images is known.

        Raises:
            SourceError: A file is not Parquet, is damaged, or lacks a column; ids are not unique.
        """

        def slices_of(uri: str) -> list[Slice]:
            groups = _row_groups(storage, uri, image_column, self.options)
            return _slices(groups, chunk_images)

        with ThreadPoolExecutor(_THREADS) as pool:
            return units_of_slices(files, pool.map(slices_of, files["uri"].to_pylist()))

    def new_reader(self, storage: Storage) -> ReadItems:
        """Return a function that reads slices; see `_SliceReader`."""
        return _SliceReader(storage, self.options.id_column).read

    def select(self, items: Sequence[Item], image_ids: Collection[str]) -> tuple[Item, ...]:
        """Return the rows of the images as slices, adjacent rows as one slice.

        Of lists, and with an id column, the complete slices: only reading tells their ids.
        """
        return tuple(
            part
            for item in items
            for part in (
                [item]
                if self.options.id_column or item.row_start == _LISTS
                else _runs(item, image_ids)
            )
        )

    def reading(self, image_column: str) -> dict[str, str]:
        """Return the format and the column."""
        return {**super().reading(image_column), "image_column": image_column}

    def kept_columns(self, storage: Storage, uri: str) -> list[pa.Field]:
        """Return the columns of `source.keep_columns`, with the types of one file."""
        return kept_fields(storage, uri, self.options.keep_columns)

    def read_kept(self, storage: Storage, items: Sequence[Item]) -> Iterator[pa.Table]:
        """Yield the values of `source.keep_columns`; see `InputFormat.read_kept`."""
        for item in items:
            table = read_row_group(storage, item, self.options)
            if table is None:
                continue
            if item.row_start != _LISTS:
                table = table.slice(item.row_start, item.num_rows)
            keys = row_keys(table, item, self.options.id_column)
            yield table.select(list(self.options.keep_columns)).append_column(
                "image_id", pa.array([image_id_in(item, key) for key in keys], pa.string())
            )


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


class _Row(NamedTuple):
    """A row as Arrow values."""

    images: pa.Scalar
    key: pa.Scalar | None  # None: without an id column


class _RowGroup:
    """The image column of one row group, read forwards, and the number of rows read so far."""

    def __init__(self, storage: Storage, item: Item, column: str, id_column: str | None) -> None:
        self.key = (item.uri, item.row_group, column)
        self.position = 0
        source = storage.open_input(item.uri)
        file = ParquetFile(source, buffer_size=_BUFFER_BYTES)
        self.column = find_image_column(item.uri, file.schema_arrow, column)
        self._rows = _rows(source, file, item.row_group, self.column, id_column)

    def skip_to(self, position: int) -> None:
        """Read and drop the rows before a position."""
        deque(islice(self, position - self.position), maxlen=0)

    def __iter__(self) -> Iterator[_Row]:
        return self

    def __next__(self) -> _Row:
        row = next(self._rows)
        self.position += 1
        return row


def _rows(
    source: Any, file: ParquetFile, row_group: int, column: ImageColumn, id_column: str | None
) -> Iterator[_Row]:
    """Yield the rows of a row group, a page in memory at a time; closes the file."""
    paths = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
    names = [paths[i] for i in column.leaves(paths)] + ([id_column] if id_column else [])
    with closing(source):
        for batch in file.iter_batches(_BATCH_ROWS, [row_group], names):
            keys = batch[id_column] if id_column else repeat(None)
            yield from map(_Row, column.rows(batch), keys)


class _SliceReader:
    """Reads slices of row groups; stores the row group in which the last slice ended.

    The next slice usually continues there, so that the rows before it are not decoded again.
    """

    def __init__(self, storage: Storage, id_column: str | None) -> None:
        self._storage, self._id_column = storage, id_column
        # A deque, because its append and pop are atomic: of two threads only one gets it.
        self._last: deque[_RowGroup] = deque(maxlen=1)

    def read(self, items: Sequence[Item], options: ReadOptions) -> Iterator[EncodedImage]:
        """Yield as many images as were planned, even if the file has changed since."""
        for item in items:
            yield from self._read_slice(item, options)

    def _read_slice(self, item: Item, options: ReadOptions) -> Iterator[EncodedImage]:
        num_read = 0
        failure = Failure("read", "missing", f"{item.uri} has fewer rows than when it was planned")
        try:
            for key, cell in islice(self._cells(item, options.image_column), item.num_rows):
                yield self._image(item, key, cell, options.max_bytes)
                num_read += 1
        except StoreError as error:
            failure = read_failure(error)
        except SourceError as error:
            failure = Failure("read", "changed", str(error))
        except (pa.ArrowException, OSError, LookupError) as error:
            why = f"{item.uri} is not readable as Parquet: {error}"
            failure = Failure("read", "corrupt", why)
        for index in range(num_read, item.num_rows):
            # The key of a row that is not read is not known, unless it is the number of the row.
            number = item.first_row + index
            is_number = self._id_column is None and item.row_start != _LISTS
            key = str(number) if is_number else f"[{item.row_group}.{index}]"
            yield EncodedImage(image_id_in(item, key), item.uri, b"", failure)

    def _image(self, item: Item, key: str, cell: Cell, max_bytes: int) -> EncodedImage:
        image_id = image_id_in(item, key)
        data: bytes | Failure | None = cell.data
        if data is None and cell.path is not None:
            data = read_beside(self._storage, item.uri, cell.path, max_bytes)
        if isinstance(data, Failure):
            failure = data
        elif data is None:
            failure = Failure("read", "missing", "the image column is null or an empty list")
        elif len(data) > max_bytes:
            failure = Failure("read", "too_large", f"{len(data)} bytes; the limit is {max_bytes}")
        else:
            return EncodedImage(image_id, item.uri, data)
        return EncodedImage(image_id, item.uri, b"", failure)

    def _cells(self, item: Item, column: str) -> Iterator[tuple[str, Cell]]:
        """Yield the key and the image of each row, or of each element of its list."""
        rows = self._take(item, column)
        is_lists = item.row_start == _LISTS
        end = item.row_start + item.num_rows
        for number, row in enumerate(rows, item.first_row):
            if rows.position == end and not is_lists:
                # before the last yield, after which the caller may stop
                self._last.append(rows)
            key = str(number if row.key is None else row.key.as_py())
            cells = rows.column.cells(row.images)
            if not is_lists:
                yield key, cells[0] if cells else Cell(None)
                if rows.position == end:
                    return
            elif not cells:
                yield key, Cell(None)
            else:
                yield from ((f"{key}#{index}", cell) for index, cell in enumerate(cells))

    def _take(self, item: Item, column: str) -> _RowGroup:
        """Return the row group of an item, at the item's first row."""
        try:
            rows = self._last.pop()
        except IndexError:
            rows = None
        start = max(0, item.row_start)
        is_usable = rows is not None and rows.key == (item.uri, item.row_group, column)
        if rows is None or not is_usable or rows.position > start:
            rows = _RowGroup(self._storage, item, column, self._id_column)
        rows.skip_to(start)
        return rows


class _Group(NamedTuple):
    """One row group."""

    num_rows: int
    num_images: int
    num_bytes: int  # of the images, uncompressed
    is_lists: bool


def _slices(groups: list[_Group], chunk_images: int) -> list[Slice]:
    """Return the slices of a file."""
    slices = []
    first_row = 0
    for number, group in enumerate(groups):
        rows, size = group.num_rows, group.num_bytes
        if group.is_lists and group.num_images:
            slices.append(Slice(size, number, _LISTS, group.num_images, first_row))
        for start in range(0, 0 if group.is_lists else rows, chunk_images):
            end = min(start + chunk_images, rows)
            share = size * end // rows - size * start // rows
            slices.append(Slice(share, number, start, end - start, first_row + start))
        first_row += rows
    return slices


def _row_groups(
    storage: Storage, uri: str, image_column: str, options: SourceOptions
) -> list[_Group]:
    """Return the row groups of a file.

    Raises:
        SourceError: The file is not Parquet, is damaged, or lacks a column; ids are not unique.
    """
    try:
        with storage.open_input(uri) as file:
            size = file.seek(0, io.SEEK_END)
            footer = ParquetFile(file)
            metadata, schema = footer.metadata, footer.schema_arrow
            check_columns(uri, footer, options)
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{uri} is not readable as Parquet ({error}); remove it from source.uri"
        ) from None
    column = find_image_column(uri, schema, image_column)
    paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    leaves = column.leaves(paths)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    _check_footer(uri, metadata.num_rows, groups, leaves, size, is_lists=column.is_list)
    return [
        _Group(
            group.num_rows,
            group.column(leaves[0]).num_values,
            sum(group.column(i).total_uncompressed_size for i in leaves),
            column.is_list,
        )
        for group in groups
    ]


def _check_footer(
    uri: str,
    num_rows: int,
    groups: Sequence[Any],
    leaves: Sequence[int],
    file_bytes: int,
    *,
    is_lists: bool,
) -> None:
    """Raise SourceError if a footer contradicts itself or the file; leaves: column numbers.

    The plan is made from the footer: rows that do not exist would be planned and fail one by one.
    """
    columns = [(group.num_rows, group.column(i)) for group in groups for i in leaves]
    max_values = _MAX_ROWS_PER_BYTE * file_bytes
    if (
        not 0 <= num_rows <= max_values
        or any(group.num_rows < 0 for group in groups)
        or sum(group.num_rows for group in groups) != num_rows
        # An empty list counts as one value.
        or any(
            not rows <= column.num_values <= (max_values if is_lists else rows)
            for rows, column in columns
        )
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
