"""Parquet schema of labelled images, and its metadata."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.errors import SourceError
from cvbatch.core.types import VOID_CLASS
from cvbatch.core.version import __version__
from cvbatch.results.schema import COLUMN_TYPES, IMAGE
from cvbatch.storage.parquet import ParquetFile

KIND = "labels"
IMPORT_REMEDY = "import the data with `cvbatch import FORMAT SRC DST`, and name DST"


class LabelColumn(NamedTuple):
    """A column of labels and the columns that belong to it.

    Args:
        types: name → Parquet type, that of the column itself first.
        presence: the Parquet leaf that is read to find which rows have the label.
    """

    types: dict[str, pa.DataType]
    presence: str


LABEL_COLUMNS: dict[str, LabelColumn] = {
    "labels": LabelColumn({"labels": COLUMN_TYPES["labels"]}, "labels.list.element.class_id"),
    "boxes": LabelColumn(
        {
            "boxes": COLUMN_TYPES["boxes"],
            "box_is_crowd": pa.list_(pa.bool_()),
            # Pixels² of the outline, by which COCO sorts objects into small, medium and large;
            # null: not known, then the area of the box counts.
            "box_area": pa.list_(pa.float64()),
            "box_masks": COLUMN_TYPES["box_masks"],  # null: the box has no outline
        },
        "boxes.list.element.class_id",
    ),
    "mask": LabelColumn({"mask": IMAGE}, "mask.path"),  # always null, so cheap to read
}
_ALWAYS = {
    "image_id": pa.string(),
    "image": IMAGE,
    "width": pa.int32(),
    "height": pa.int32(),
    "split": pa.string(),
}
_COLUMNS = _ALWAYS | {
    name: type_ for column in LABEL_COLUMNS.values() for name, type_ in column.types.items()
}


def expand_label_columns(columns: Iterable[str]) -> list[str]:
    """Return the names of label columns and of the columns that belong to them.

    Args:
        columns: keys of LABEL_COLUMNS.
    """
    return [name for column in columns for name in LABEL_COLUMNS[column].types]


def label_schema(columns: Collection[str]) -> pa.Schema:
    """Return the Parquet schema of labelled images.

    Args:
        columns: names of the label columns that the dataset has; the others are left out.
    """
    return pa.schema(
        [(name, _COLUMNS[name]) for name in _COLUMNS if name in _ALWAYS or name in columns]
    )


def label_metadata(
    columns: Collection[str],
    classes: Mapping[str, Sequence[str]],
    is_multi_label: bool,
    format_: str,
    *,
    has_images: bool = True,
) -> bytes:
    """Return the JSON under the file-level metadata key `cvbatch`.

    Args:
        columns: names of the label columns that the dataset has.
        classes: class names of each label column, by class id.
        is_multi_label: an image may have several labels.
        format_: the dataset's format, as in `cvbatch import FORMAT`.
        has_images: False: labels alone; `image` is null.
    """
    document = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "cvbatch_version": __version__,
        "format": format_,
        "columns": [name for name in _COLUMNS if name in columns],
        "classes": {column: list(names) for column, names in classes.items()},
        "is_multi_label": is_multi_label,
        "box_format": "half-open xyxy, pixels of the upright image",
        "mask_void": VOID_CLASS,
    }
    if not has_images:
        document["has_images"] = False
    return json.dumps(document, sort_keys=True, ensure_ascii=False).encode()


def stored_metadata(file: ParquetFile, uri: str, *, needs_images: bool) -> dict[str, Any]:
    """Return what `label_metadata` has stored in a file.

    Args:
        uri: of the file, for messages.
        needs_images: labels alone are refused.

    Raises:
        SourceError: the file is not labelled Parquet, or has no images.
        ValueError: the metadata is not JSON.
    """
    document = json.loads((file.metadata.metadata or {}).get(b"cvbatch", b"null"))
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise SourceError(f"{uri} is not labelled Parquet of cvbatch; {IMPORT_REMEDY}")
    if needs_images and document.get("has_images") is False:
        raise SourceError(
            f"{uri} contains labels without images (--no-images), which only an evaluation can "
            "use; import the data set again with its images"
        )
    return document
