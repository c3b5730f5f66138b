"""Input format: lists of image files, as text (one URI a line), CSV or a Parquet file."""

from __future__ import annotations

import io
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from cvbatch.core.errors import SourceError
from cvbatch.sources.image_files import ImageFiles
from cvbatch.storage import store
from cvbatch.storage.listing import FILES, Listing, Progress
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage

_SIZE, _VERSIONS = "size", ("etag", "last_modified")
_COLUMNS = ("uri", _SIZE, *_VERSIONS)
_DELIMITERS = (",", "\t", ";")


class ManifestList(ImageFiles):
    """Lists of image files. The sink's manifest stores the format of the files, "images"."""

    suffixes = ()

    def list_files(self, storage: Storage, uri: str, on_progress: Progress | None) -> Listing:
        """Return the files of a list; paths without a scheme or leading "/" are relative to it.

        A list with columns `size`, `etag` or `last_modified` states the version of each file, so
        that a changed file is noticed; otherwise sizes and versions are 0 and "".

        Raises:
            SourceError: The list is not text or Parquet, or has an entry that is not a path.
        """
        list_uri = store.absolute(uri)
        base = list_uri[: list_uri.rindex("/") + 1]
        read = _parquet_table if list_uri.endswith(".parquet") else _text_table
        table = read(storage, list_uri)
        files = pa.table(
            [_absolute(table["uri"].combine_chunks(), uri, base), _sizes(table), _versions(table)],
            schema=FILES,
        )
        return Listing(base, files)


def _absolute(lines: pa.Array, uri: str, base: str) -> pa.Array:
    """Return the absolute URIs of the entries of a list."""
    lines = _local_paths(lines)
    has_scheme = pc.match_substring_regex(lines, r"^[A-Za-z][A-Za-z0-9+.-]*://")
    is_known = pc.match_substring_regex(lines, r"^(?:s3|gs)://[^@/]+/")
    bad = lines.filter(pc.and_(has_scheme, pc.invert(is_known)))
    if len(bad):
        raise SourceError(f"the manifest {uri} names {_reason(bad[0].as_py())}")
    is_absolute = pc.or_(is_known, pc.starts_with(lines, "/"))
    folder, empty = (pa.scalar(text, pa.large_string()) for text in (base, ""))
    return pc.if_else(is_absolute, lines, pc.binary_join_element_wise(folder, lines, empty))


def _local_paths(lines: pa.Array) -> pa.Array:
    """Return the entries with a path in the place of file:///, whose percent escapes are read."""
    is_local = pc.starts_with(lines, "file:///")
    local = lines.filter(is_local).to_pylist()
    if not local:
        return lines
    paths = [unquote(line.removeprefix("file://")) for line in local]
    return pc.replace_with_mask(lines, is_local, pa.array(paths, pa.large_string()))


def _reason(line: str) -> str:
    """Return a bad entry, without its credentials, and why it is bad."""
    scheme, _, rest = line.partition("://")
    if "@" in rest.partition("/")[0]:
        why = "has credentials; put them into the environment and take them out of the list"
        return f"a {scheme}:// URI that {why}"
    if scheme in ("s3", "gs"):
        return f"{line[:500]!r}, which has no name below its bucket; write {scheme}://bucket/name"
    if scheme == "file":
        return f"{line[:500]!r}, which is on another host; write file:///path or a path"
    return (
        f"{line[:500]!r}; {scheme}:// is not read; copy the images to a folder or a store, and "
        "list s3:// or gs:// URIs or paths"
    )


def _sizes(table: pa.Table) -> pa.ChunkedArray:
    if _SIZE not in table.column_names:
        return pa.chunked_array([pa.array(np.zeros(table.num_rows, np.int64))])
    return pc.coalesce(table[_SIZE], 0)


def _versions(table: pa.Table) -> pa.ChunkedArray:
    """Return the version of each file: what the list has of it, "" if that is nothing."""
    empty = pa.scalar("", pa.string())
    version = pa.chunked_array([pa.repeat(empty, table.num_rows)])
    for name in _VERSIONS:
        if name in table.column_names:
            version = pc.binary_join_element_wise(version, pc.coalesce(table[name], ""), "")
    if _SIZE in table.column_names:  # a change of the size is noticed if there is a version
        has_size = pc.and_(pc.equal(version, ""), pc.is_valid(table[_SIZE]))
        version = pc.if_else(has_size, "size", version)
    return version


def _typed(table: pa.Table, uri: str) -> pa.Table:
    """Return the known columns of a list with their types; entries without a URI are left out."""
    types = {"uri": pa.large_string(), _SIZE: pa.int64()}
    names = [name for name in _COLUMNS if name in table.column_names]
    try:
        columns = {name: table[name].cast(types.get(name, pa.string())) for name in names}
    except pa.ArrowException as error:
        raise SourceError(
            f"the manifest {uri} has a column that is not read ({error}); uri, etag and "
            "last_modified must be text, size an integer"
        ) from None
    typed = pa.table(columns)
    return typed.filter(pc.is_valid(typed["uri"]))


def _text_table(storage: Storage, uri: str) -> pa.Table:
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceError(f"the manifest {uri} is not text; write one URI a line, UTF-8") from None
    header = text.partition("\n")[0].rstrip("\r")
    for delimiter in _DELIMITERS:
        names = header.split(delimiter)
        if "uri" in names and (len(names) > 1 or uri.endswith((".csv", ".tsv"))):
            return _typed(_csv_table(text, delimiter, uri), uri)
    lines = pc.split_pattern(pa.array([text], pa.large_string()), "\n").flatten()
    lines = pc.utf8_rtrim(lines, "\r")
    is_blank = pc.match_substring_regex(lines, r"^\s*(?:#|\z)")
    return pa.table({"uri": lines.filter(pc.invert(is_blank))})


def _csv_table(text: str, delimiter: str, uri: str) -> pa.Table:
    types = {name: pa.string() for name in _COLUMNS}
    try:
        return csv.read_csv(
            io.BytesIO(text.encode()),
            csv.ReadOptions(use_threads=False),
            csv.ParseOptions(delimiter=delimiter),
            csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""]),
        )
    except pa.ArrowException as error:
        raise SourceError(f"the manifest {uri} is not readable as CSV: {error}") from None


def _parquet_table(storage: Storage, uri: str) -> pa.Table:
    with storage.open_input(uri) as file:
        try:
            reader = ParquetFile(file)
            strings = [f.name for f in reader.schema_arrow if _is_string(f.type)]
            if "uri" not in strings and len(strings) != 1:
                raise SourceError(
                    f"the manifest {uri} has the columns {reader.schema_arrow.names}; it needs a "
                    "string column `uri`, or exactly one string column"
                )
            name = "uri" if "uri" in strings else strings[0]
            others = [n for n in reader.schema_arrow.names if n in _COLUMNS and n != name]
            table = reader.read([name, *others]).rename_columns({name: "uri"})
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"the manifest {uri} is not readable as Parquet: {error}") from None
    return _typed(table, uri)


def _is_string(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
    )
