"""Columns of Parquet files beside the images: ids, columns for the result, files beside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import SourceError, StoreError
from cvbatch.core.types import Failure, Item, SourceOptions
from cvbatch.sources.base import read_failure
from cvbatch.storage import store
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage


def check_columns(uri: str, file: ParquetFile, options: SourceOptions) -> None:
    """Check `source.id_column` and `source.keep_columns` of a file.

    Raises:
        SourceError: A column is missing; ids are neither strings nor integers, null or not unique.
    """
    schema = file.schema_arrow
    asked = {"id_column": filter(None, [options.id_column]), "keep_columns": options.keep_columns}
    for key, names in asked.items():
        for name in names:
            if schema.names.count(name) != 1:
                raise SourceError(
                    f"{uri} has no column {name!r}, or several; set source.{key} to columns of "
                    f"{schema.names}"
                )
    if options.id_column is not None:
        _check_ids(uri, file, options.id_column)


def _check_ids(uri: str, file: ParquetFile, name: str) -> None:
    type_ = _plain(file.schema_arrow.field(name).type)
    if not (pa.types.is_integer(type_) or _is_string(type_)):
        raise SourceError(
            f"the column {name!r} of {uri} is {type_}; source.id_column must be strings or integers"
        )
    ids = file.read([name])[name].cast(type_)
    if ids.null_count:
        raise SourceError(
            f"the column {name!r} of {uri} has {ids.null_count:,} nulls; source.id_column must "
            "name each row"
        )
    counts = ids.value_counts()
    repeated = counts.filter(pc.greater(pc.struct_field(counts, "counts"), 1))
    if len(repeated):
        raise SourceError(
            f"the column {name!r} of {uri} has {len(repeated):,} values more than once, such as "
            f"{repeated[0]['values'].as_py()!r}; source.id_column must be unique in a file"
        )


def kept_fields(storage: Storage, uri: str, names: Sequence[str]) -> list[pa.Field]:
    """Return the columns of a file, with the types that the result stores.

    Raises:
        SourceError: The file cannot be read.
    """
    if not names:
        return []
    try:
        with storage.open_input(uri) as source:
            schema = ParquetFile(source).schema_arrow
    except (StoreError, pa.ArrowException, OSError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    return [pa.field(name, _plain(schema.field(name).type)) for name in names]


def _plain(type_: pa.DataType) -> pa.DataType:
    """Return the type of values without a dictionary or an extension."""
    if pa.types.is_dictionary(type_):
        return type_.value_type
    return type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_


def _is_string(type_: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(type_) for check in checks)


def read_row_group(storage: Storage, item: Item, options: SourceOptions) -> pa.Table | None:
    """Return `keep_columns` and `id_column` of the row group of an item; None if it is unreadable.

    Raises:
        StoreError: The store does not respond.
    """
    names = tuple(dict.fromkeys([*options.keep_columns, *filter(None, [options.id_column])]))
    try:
        return _columns(storage, item.uri, item.row_group, names)
    except StoreError as error:
        read_failure(error)  # raises an error that is not about this file
    except (pa.ArrowException, OSError, LookupError):
        pass  # its images are failed rows
    return None


@lru_cache(maxsize=1)  # consecutive slices of a worker are mostly in the same row group
def _columns(storage: Storage, uri: str, row_group: int, names: tuple[str, ...]) -> pa.Table:
    with storage.open_input(uri) as source:
        return ParquetFile(source).read_row_group(row_group, list(names)).combine_chunks()


def row_keys(table: pa.Table, item: Item, id_column: str | None) -> Iterator[str]:
    """Yield the key of each row of an item: its number in the file, or its id."""
    if id_column is None:
        return map(str, range(item.first_row, item.first_row + table.num_rows))
    return map(str, table[id_column].to_pylist())


def read_beside(storage: Storage, uri: str, path: str, max_bytes: int) -> bytes | Failure:
    """Return the bytes of an image whose path is stored in a Parquet file.

    Args:
        storage: Reads the file.
        uri: Of the Parquet file.
        path: Relative to the folder of the Parquet file; or absolute, but inside that folder.
        max_bytes: Of the image.
    """
    folder = uri[: uri.rindex("/") + 1]
    relative = path.removeprefix(folder)
    parts = [part for part in relative.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or relative.startswith("/") or "://" in relative:
        why = f"the path {path[:200]!r} leaves the folder of the Parquet file, {folder}"
        return Failure("read", "denied", why)
    try:
        return storage.read_bytes(store.join(folder, *parts), max_bytes)
    except StoreError as error:
        return read_failure(error)
