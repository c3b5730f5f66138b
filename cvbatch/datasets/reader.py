"""Scan labelled Parquet: splits, classes and row groups, without reading an image."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError
from cvbatch.datasets.schema import IMPORT_REMEDY, LABEL_COLUMNS, stored_metadata
from cvbatch.images.masks import count_pixels, decode_png
from cvbatch.storage import store
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage

_THREADS = 16
_MAX_MASKS = 1_000  # that are decoded to count pixels
_IMPORT_STATE = "_cvbatch/import.json"


class RowGroup(NamedTuple):
    """The rows of one Parquet row group that belong to one split and have the label."""

    uri: str
    number: int  # of the row group in the file
    rows: tuple[int, ...] | None  # row numbers in the row group, ascending; None: all
    num_images: int
    size_bytes: int  # estimated, uncompressed


@dataclass(frozen=True)
class Split:
    """The images of one split that have the label, in the order of the files."""

    name: str
    groups: tuple[RowGroup, ...]
    num_unlabelled: int  # images of the split without the label

    def __len__(self) -> int:
        return sum(group.num_images for group in self.groups)


@dataclass(frozen=True)
class LabelledDataset:
    """Classes and splits of labelled Parquet, for one label column."""

    classes: tuple[str, ...]  # of the label column
    splits: dict[str, Split]
    identity: str  # SHA-256 of the files' names and sizes


class LabelSpec(NamedTuple):
    """The label column that is used, and whether an image needs exactly one label."""

    column: str  # a key of LABEL_COLUMNS
    is_single: bool = False  # exactly one label, or box, per image


@dataclass(frozen=True)
class _File:
    uri: str
    classes: tuple[str, ...] | None  # None: the file lacks the column
    groups: tuple[tuple[str, RowGroup, int], ...]  # split, row group, rows without the label


def scan_dataset(storage: Storage, uris: Sequence[str], spec: LabelSpec) -> LabelledDataset:
    """Return the classes and splits of labelled Parquet, from its footers and label columns.

    Args:
        storage: reads the files.
        uris: folders, or single files.
        spec: the label column.

    Raises:
        SourceError: there is no file, an import is incomplete, a file lacks the column, or the
            classes of two files differ.
    """
    uri_sizes = [pair for uri in uris for pair in list_parquet_files(storage, store.absolute(uri))]
    if not uri_sizes:
        raise SourceError(f"{', '.join(uris)} contains no labelled Parquet; {IMPORT_REMEDY}")
    with ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(lambda pair: _scan_file(storage, pair[0], spec), uri_sizes))
    classes = _common_classes(files, spec)
    names = dict.fromkeys(split for file in files for split, _, _ in file.groups)
    splits = {}
    for name in names:
        entries = [entry for file in files for entry in file.groups if entry[0] == name]
        groups = tuple(group for _, group, _ in entries if group.num_images)
        splits[name] = Split(name, groups, sum(unlabelled for _, _, unlabelled in entries))
    name_sizes = [[uri.rpartition("/")[2], size] for uri, size in uri_sizes]
    identity = hashlib.sha256(json.dumps(name_sizes).encode())
    return LabelledDataset(classes, splits, identity.hexdigest())


def list_parquet_files(storage: Storage, uri: str) -> list[tuple[str, int]]:
    """Return (URI, bytes) of the Parquet files of a folder, or of the file itself.

    Raises:
        SourceError: the folder or file does not exist, its import is incomplete, or it is a result
            of `cvbatch predict`.
    """
    folder, _, name = uri.rpartition("/")
    is_file = name.endswith(".parquet")
    if message := store.missing_path(uri):
        raise SourceError(f"the labels cannot be read: {message}")
    try:
        if not is_file and storage.exists(uri):
            raise SourceError(
                f"source {uri} is a file, not labelled Parquet; convert it with cvbatch import "
                f"{'coco' if name.endswith('.json') else 'FORMAT'} SRC DST, and name DST"
            )
        _check_import(storage, folder if is_file else uri)
        sizes = storage.list_names(folder if is_file else uri)
    except (NotFoundError, AccessDeniedError) as error:
        raise SourceError(f"the source cannot be read: {error}") from None
    if is_file:
        if name not in sizes:
            raise SourceError(f"source {uri} does not exist; check the name")
        return [(uri, sizes[name])]
    return [
        (store.join(uri, name), size)
        for name, size in sorted(sizes.items())
        if name.endswith(".parquet") and not name.startswith(("_", "."))
    ]


def _check_import(storage: Storage, folder: str) -> None:
    """Raise if the import of a folder is incomplete, or if it is a result of a prediction."""
    if storage.exists(store.join(folder, "_cvbatch/job.json")):
        raise SourceError(
            f"source {folder} is the result of a prediction, not labelled data; convert it with "
            "cvbatch import predictions"
        )
    try:
        state = json.loads(storage.read_bytes(store.join(folder, _IMPORT_STATE)))
        is_complete = bool(state["is_complete"])
    except NotFoundError:
        return
    except (ValueError, LookupError, TypeError):
        is_complete = False
    if not is_complete:
        raise SourceError(
            f"source {folder}: its import was not finished; run the cvbatch import again"
        )


def _scan_file(storage: Storage, uri: str, spec: LabelSpec) -> _File:
    try:
        with storage.open_input(uri) as source:
            file = ParquetFile(source)
            metadata = stored_metadata(file, uri, needs_images=True)
            if spec.column not in file.schema_arrow.names:
                return _File(uri, None, ())
            classes = tuple(metadata["classes"].get(spec.column, ()))
            groups = [
                group
                for number in range(file.num_row_groups)
                for group in _split_group(uri, file, number, spec)
            ]
            return _File(uri, classes, tuple(groups))
    except (pa.ArrowException, OSError, ValueError, LookupError, AttributeError) as error:
        raise SourceError(
            f"{uri} cannot be read as labelled Parquet ({str(error)[:200]}); {IMPORT_REMEDY}"
        ) from None


def _split_group(
    uri: str, file: ParquetFile, number: int, spec: LabelSpec
) -> Iterator[tuple[str, RowGroup, int]]:
    """Yield the part of a row group in each split, and how many of its rows lack the label."""
    table = file.read_row_group(number, ["split", LABEL_COLUMNS[spec.column].presence])
    column = table[spec.column].combine_chunks()
    if spec.is_single:
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        has_label = pc.equal(lengths, 1).to_numpy(zero_copy_only=False)
    else:
        has_label = column.is_valid().to_numpy(zero_copy_only=False)
    total_bytes = file.metadata.row_group(number).total_byte_size
    split_of_row = np.array(table["split"].to_pylist(), object)
    for split in dict.fromkeys(split_of_row.tolist()):
        in_split = split_of_row == split
        rows = np.flatnonzero(in_split & has_label)
        numbers = None if len(rows) == table.num_rows else tuple(rows.tolist())
        size_bytes = total_bytes * len(rows) // table.num_rows
        group = RowGroup(uri, number, numbers, len(rows), size_bytes)
        yield str(split), group, int(np.sum(in_split & ~has_label))


def _common_classes(files: Sequence[_File], spec: LabelSpec) -> tuple[str, ...]:
    lacking = [file.uri for file in files if file.classes is None]
    if lacking:
        raise SourceError(
            f"{lacking[0]} has no column {spec.column!r}, which this task requires; import such "
            "labels, or set another task"
        )
    first = files[0]
    for file in files:
        if file.classes != first.classes:
            raise SourceError(
                f"classes differ: {file.uri} has {_list_text(file.classes)}, {first.uri} has "
                f"{_list_text(first.classes)}; import both with the same --classes"
            )
    if not first.classes:
        raise SourceError(
            f"{first.uri} has no class names for column {spec.column!r}; {IMPORT_REMEDY}"
        )
    return first.classes


def _list_text(classes: tuple[str, ...] | None) -> str:
    names = classes or ()
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _label_tables(storage: Storage, split: Split, names: list[str]) -> Iterator[pa.Table]:
    """Yield some columns of the images of a split, a row group at a time."""
    for group in split.groups:
        with storage.open_input(group.uri) as source:
            table = ParquetFile(source).read_row_group(group.number, names)
        yield table if group.rows is None else table.take(pa.array(group.rows, pa.int64()))


def count_labels(
    storage: Storage, split: Split, column: str, num_classes: int
) -> np.ndarray:  # (C,) int64
    """Return the number of labels, boxes or pixels of each class in a split.

    Only the label column is read. Crowds are counted, void pixels and damaged masks are not.

    Args:
        column: labels, boxes or mask; of more than 1,000 masks, so many are counted, evenly spaced.
    """
    counts = np.zeros(num_classes, np.int64)
    if column == "mask":
        for mask in _masks(storage, split):
            counts += count_pixels(mask, num_classes)
        return counts
    for table in _label_tables(storage, split, [LABEL_COLUMNS[column].presence]):
        labels = table[column].combine_chunks().flatten()
        class_ids = pc.struct_field(labels, "class_id").to_numpy(zero_copy_only=False)
        counts += np.bincount(class_ids, minlength=num_classes)[:num_classes]
    return counts


def _masks(storage: Storage, split: Split) -> Iterator[np.ndarray]:  # each (H, W) uint8
    """Yield the masks of a split, at most `_MAX_MASKS`, evenly spaced."""
    step, start = -(-len(split) // _MAX_MASKS), 0
    for table in _label_tables(storage, split, ["mask.bytes"]):
        for data in pc.struct_field(table["mask"], "bytes").to_pylist()[start::step]:
            with contextlib.suppress(ValueError):  # a damaged mask is left out of training, too
                yield decode_png(data or b"")
        start = (start - table.num_rows) % step


def relative_box_sizes(storage: Storage, split: Split) -> np.ndarray:  # (N, 2) float64
    """Return (height, width) of all boxes of a split, crowds included, as fractions of the image.

    Only label columns are read.
    """
    sizes = [np.empty((0, 2))]
    leaves = ("x_min", "y_min", "x_max", "y_max")
    names = ["width", "height", *(f"boxes.list.element.{leaf}" for leaf in leaves)]
    for table in _label_tables(storage, split, names):
        boxes = table["boxes"].combine_chunks()
        num_boxes = pc.fill_null(pc.list_value_length(boxes), 0).to_numpy()
        flat = boxes.flatten()
        x_min, y_min, x_max, y_max = (
            pc.struct_field(flat, leaf).to_numpy(zero_copy_only=False) for leaf in leaves
        )
        box_hw = np.stack([y_max - y_min, x_max - x_min], axis=1)
        image_hw = np.stack([table[name].to_numpy() for name in ("height", "width")], axis=1)
        sizes.append(box_hw / np.repeat(image_hw, num_boxes, axis=0))
    relative = np.concatenate(sizes)
    return relative[(relative > 0).all(axis=1)]
