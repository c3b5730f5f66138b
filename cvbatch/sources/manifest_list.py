"""Input format: lists of image files, as text (one URI a line) or as a Parquet file."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import SourceError
from cvbatch.sources.image_files import ImageFiles
from cvbatch.storage import store
from cvbatch.storage.listing import FILES, Listing, Progress
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage


class ManifestList(ImageFiles):
    """Lists of image files. The sink's manifest stores the format of the files, "images"."""

    suffixes = ()

    def list_files(self, storage: Storage, uri: str, on_progress: Progress | None) -> Listing:
        """Return the files of a list; paths without a scheme or leading "/" are relative to it.

        Sizes and versions are not looked up: 0 and "".

        Raises:
            SourceError: The list is not text or Parquet, or has an entry that is not a path.
        """
        list_uri = store.absolute(uri)
        base = list_uri[: list_uri.rindex("/") + 1]
        read = _parquet_lines if list_uri.endswith(".parquet") else _text_lines
        lines = read(storage, list_uri)
        has_scheme = pc.match_substring_regex(lines, r"^[A-Za-z][A-Za-z0-9+.-]*://")
        is_known = pc.match_substring_regex(lines, r"^(?:s3|gs)://[^@/]+/")
        bad = lines.filter(pc.and_(has_scheme, pc.invert(is_known)))
        if len(bad):
            raise SourceError(
                f"the manifest {uri} names {bad[0].as_py()!r}, not an s3:// or gs:// URI or a "
                "path; credentials belong in the environment"
            )
        is_absolute = pc.or_(is_known, pc.starts_with(lines, "/"))
        folder, empty = (pa.scalar(text, pa.large_string()) for text in (base, ""))
        uris = pc.if_else(is_absolute, lines, pc.binary_join_element_wise(folder, lines, empty))
        sizes = pa.array(np.zeros(len(uris), np.int64))
        versions = pa.repeat(pa.scalar("", pa.string()), len(uris))
        return Listing(base, pa.table([uris, sizes, versions], schema=FILES))


def _text_lines(storage: Storage, uri: str) -> pa.Array:
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceError(f"the manifest {uri} is not text; write one URI a line, UTF-8") from None
    lines = pc.split_pattern(pa.array([text], pa.large_string()), "\n").flatten()
    lines = pc.utf8_rtrim(lines, "\r")
    is_blank = pc.match_substring_regex(lines, r"^\s*(?:#|\z)")
    return lines.filter(pc.invert(is_blank))


def _parquet_lines(storage: Storage, uri: str) -> pa.Array:
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
            column = reader.read([name])[name].cast(pa.large_string()).combine_chunks()
        except pa.ArrowInvalid as error:
            raise SourceError(f"the manifest {uri} is not readable as Parquet: {error}") from None
    return column.drop_null()


def _is_string(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string_view(type_)
    )
