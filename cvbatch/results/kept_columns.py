"""Columns of the source that the rows of a result keep (`source.keep_columns`)."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import ConfigError, CvbatchError
from cvbatch.results.schema import RESERVED_NAMES


def check_kept_names(names: Sequence[str]) -> None:
    """Check the names of columns of the source that the result gets.

    Raises:
        ConfigError: A name is repeated, or is that of a column of results.
    """
    for name in names:
        if name in RESERVED_NAMES or names.count(name) > 1:
            why = "is a column of the result" if name in RESERVED_NAMES else "is there twice"
            raise ConfigError(
                f"source.keep_columns: {name!r} {why}; rename the column in the source, or remove "
                "it from the job file"
            )


def with_kept_columns(
    rows: pa.Table, kept: Sequence[pa.Table], fields: Sequence[pa.Field]
) -> pa.Table:
    """Return rows with the columns of the source; null where the source could not be read.

    Args:
        rows: N rows of the result.
        kept: Of the source: the columns, and `image_id` without the index of a list.
        fields: Names and types of the columns.

    Raises:
        CvbatchError: A value does not fit the type.
    """
    columns = [*fields, pa.field("image_id", pa.string())]
    stored = pa.schema(columns)
    tables = [pa.table([_cast(table[f.name], f) for f in columns], schema=stored) for table in kept]
    known = pa.concat_tables([stored.empty_table(), *tables]).combine_chunks()
    ids, known_ids = (table["image_id"].combine_chunks() for table in (rows, known))
    of_list = pc.replace_substring_regex(ids, r"(?s)#[0-9]+\z", "")
    index = pc.coalesce(pc.index_in(ids, known_ids), pc.index_in(of_list, known_ids))
    for field in fields:
        rows = rows.append_column(field, known[field.name].take(index))
    return rows


def _cast(values: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        return values.cast(field.type)
    except pa.ArrowException as error:
        raise CvbatchError(
            f"source.keep_columns: the column {field.name!r} is {field.type} in the first file of "
            f"the source and {values.type} in another ({error}); write the files with one type, or "
            "remove the column"
        ) from None
