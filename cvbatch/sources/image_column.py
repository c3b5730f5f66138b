"""Find the encoded images in the schema of a Parquet file, and read them from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import SourceError


class Cell(NamedTuple):
    """One image of a row: its bytes, or where they are."""

    data: bytes | None
    path: str | None = None  # relative to the Parquet file; used if there are no bytes


class ImageColumn(NamedTuple):
    """Where the images of a Parquet file are.

    Attributes:
        names: Names of the column and of the structs inside it.
        is_list: Whether a row may have several images, or none.
        is_struct: Whether an image is a struct {bytes, path}.
    """

    names: tuple[str, ...]
    is_list: bool
    is_struct: bool

    def leaves(self, paths: Sequence[str]) -> list[int]:
        """Return the positions of the Parquet columns to read; what is beside them is not read.

        Args:
            paths: Of all Parquet columns, such as `image.bytes` or `images.list.element.bytes`.
        """
        prefix = ".".join(self.names)
        depth = 2 * self.is_list + self.is_struct  # a list adds two names, in old files one
        depths = (depth - 1, depth) if self.is_list else (depth,)
        positions = []
        for position, path in enumerate(paths):
            is_below = path == prefix or path.startswith(f"{prefix}.")
            rest = path[len(prefix) + 1 :].split(".") if path != prefix else []
            is_image = not self.is_struct or rest[-1:] in (["bytes"], ["path"])
            if is_below and len(rest) in depths and is_image:
                positions.append(position)
        return positions

    def rows(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the images of each row as Arrow values, (N,); see `cells`."""
        column = batch.column(batch.schema.get_field_index(self.names[0]))
        for name in self.names[1:]:
            column = pc.struct_field(column, name)
        return column

    def cells(self, row: pa.Scalar) -> list[Cell]:
        """Return the images of a row: one, or as many as its list has; [] for an empty list."""
        value = row.as_py()
        values = (value or []) if self.is_list else [value]
        return [self._of_value(image) for image in values]

    def _of_value(self, value: Any) -> Cell:
        if not self.is_struct:
            return Cell(value)
        path = (value or {}).get("path")
        data = (value or {}).get("bytes")
        return Cell(data, path if isinstance(path, str) else None)


def find_image_column(uri: str, schema: pa.Schema, image_column: str) -> ImageColumn:
    """Return where the images of a file are.

    Args:
        uri: Names the file in messages.
        schema: Of the file.
        image_column: Name of a column, or of a field of a struct: `data.image`.

    Raises:
        SourceError: There is no such column, or it has no images.
    """
    names = _names(uri, schema, image_column)
    type_ = schema.field(names[0]).type
    for name in names[1:]:
        type_ = type_.field(name).type
    is_list = _is_list(type_)
    element = type_.value_type if is_list else type_
    is_struct = bool(pa.types.is_struct(element) and element.get_field_index("bytes") >= 0)
    inner = element.field("bytes").type if is_struct else element
    if pa.types.is_dictionary(inner):
        inner = inner.value_type
    if not _is_binary(inner):
        raise SourceError(
            f"the column {image_column!r} of {uri} is {type_}; it must be binary, a struct with "
            f"binary `bytes`, or a list of these; set source.image_column{_candidates(schema)}"
        )
    return ImageColumn(names, is_list, is_struct)


def _names(uri: str, schema: pa.Schema, image_column: str) -> tuple[str, ...]:
    """Return the names of a column and of the structs inside it."""
    if schema.names.count(image_column) > 1:
        raise SourceError(f"{uri} has more than one column {image_column!r}; rename all but one")
    if image_column in schema.names:
        return (image_column,)
    names = tuple(image_column.split("."))
    type_ = pa.struct(list(schema))
    for name in names:
        if not pa.types.is_struct(type_) or type_.get_field_index(name) < 0:
            if {"image_id", "status"} <= set(schema.names):
                raise SourceError(
                    f"{uri} is the result of a prediction, which contains no images; set source to "
                    "the images"
                )
            raise SourceError(
                f"{uri} has no column {image_column!r}; set source.image_column to one of "
                f"{schema.names}{_candidates(schema)}"
            )
        type_ = type_.field(name).type
    return names


def _candidates(schema: pa.Schema) -> str:
    """Return which columns may have images, as the end of a sentence."""
    names = [f.name for f in schema if _may_have_images(f.type)]
    return f" (images may be in {', '.join(names)})" if names else ""


def _may_have_images(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        return any(_may_have_images(field.type) for field in type_)
    if _is_list(type_) or pa.types.is_dictionary(type_):
        return _may_have_images(type_.value_type)
    return _is_binary(type_)


def _is_list(type_: pa.DataType) -> bool:
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(type_) for check in checks)


def _is_binary(type_: pa.DataType) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(check(type_) for check in checks)
