"""Labelled Parquet, as an import writes it, is found and held to what a training needs of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cvbatch.core.errors import AccessDeniedError, NotFoundError, SourceError
from cvbatch.datasets.schema import LABEL_COLUMNS
from cvbatch.storage import store
from cvbatch.storage.store import Storage

_THREADS = 16
_SUMMARY = "_cvbatch/import.json"
_REMEDY = "import the data with cvbatch import"


class RowGroup(NamedTuple):
    """Rows that lie together in a file and are all of one split."""

    uri: str
    number: int  # in the file
    rows: tuple[int, ...] | None  # those that are used, ascending; None: all
    num_images: int
    size_bytes: int


@dataclass(frozen=True)
class Split:
    """The images of one split that have the labels which are asked for, in the files' order."""

    name: str
    groups: tuple[RowGroup, ...]
    num_unlabelled: int  # others, that are left out

    def __len__(self) -> int:
        return sum(group.num_images for group in self.groups)


@dataclass(frozen=True)
class Labelled:
    """Labelled data, as far as it is known without reading an image."""

    classes: tuple[str, ...]  # of the column that is learnt
    splits: dict[str, Split]
    identity: str  # SHA-256 of the files' names and sizes


class Wanted(NamedTuple):
    """What of labelled data is learnt: a column, and how many of its labels an image has."""

    column: str  # a key of LABEL_COLUMNS
    is_single: bool = False  # exactly one label, or box, an image


@dataclass(frozen=True)
class _File:
    uri: str
    classes: tuple[str, ...] | None  # None: it has no such column
    groups: tuple[tuple[str, RowGroup, int], ...]  # split, group, rows of it without the label


def find_labelled(storage: Storage, uris: Sequence[str], wanted: Wanted) -> Labelled:
    """Return what labelled data there is, from the footers and the labels: no image is read.

    uris: folders, or files of them.

    Raises:
        SourceError: nothing is found, an import is not finished, files have other classes than
            the first, or none has the column.
    """
    named = [found for uri in uris for found in files_of(storage, store.absolute(uri))]
    if not named:
        raise SourceError(f"source {', '.join(uris)} holds no labelled Parquet; {_REMEDY}")
    with ThreadPoolExecutor(_THREADS) as pool:
        files = list(pool.map(lambda one: _read_file(storage, one[0], wanted), named))
    classes = _common_classes(files, wanted)
    names = dict.fromkeys(split for file in files for split, _, _ in file.groups)
    splits = {}
    for name in names:
        groups = [(g, less) for file in files for split, g, less in file.groups if split == name]
        used = tuple(group for group, _ in groups if group.num_images)
        splits[name] = Split(name, used, sum(less for _, less in groups))
    files_are = [[uri.rpartition("/")[2], size] for uri, size in named]
    identity = hashlib.sha256(json.dumps(files_are).encode())
    return Labelled(classes, splits, identity.hexdigest())


def files_of(storage: Storage, uri: str) -> list[tuple[str, int]]:
    """Return the Parquet files of a folder, or the file itself, with their sizes."""
    folder, _, name = uri.rpartition("/")
    is_file = name.endswith(".parquet")
    try:
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
    """Refuse a folder whose import was not finished, or that holds a prediction's result."""
    if storage.exists(store.join(folder, "_cvbatch/job.json")):
        raise SourceError(
            f"source {folder} is the result of a prediction, not labelled data; make it that with "
            "cvbatch import predictions"
        )
    try:
        said = json.loads(storage.read_bytes(store.join(folder, _SUMMARY)))
        is_complete = bool(said["is_complete"])
    except NotFoundError:
        return
    except (ValueError, LookupError, TypeError):
        is_complete = False
    if not is_complete:
        raise SourceError(
            f"source {folder}: its import was not finished; run the cvbatch import again"
        )


def _read_file(storage: Storage, uri: str, wanted: Wanted) -> _File:
    try:
        with storage.open_input(uri) as source:
            file = pq.ParquetFile(source)
            said = json.loads((file.metadata.metadata or {}).get(b"cvbatch", b"null"))
            if not isinstance(said, dict) or said.get("kind") != "labels":
                raise SourceError(f"{uri} is not labelled data as cvbatch writes it; {_REMEDY}")
            if wanted.column not in file.schema_arrow.names:
                return _File(uri, None, ())
            classes = tuple(said["classes"].get(wanted.column, ()))
            groups = [
                group
                for number in range(file.num_row_groups)
                for group in _split_group(uri, file, number, wanted)
            ]
            return _File(uri, classes, tuple(groups))
    except (pa.ArrowException, OSError, ValueError, LookupError, AttributeError) as error:
        raise SourceError(
            f"{uri} cannot be read as labelled Parquet ({str(error)[:200]}); {_REMEDY}"
        ) from None


def _split_group(
    uri: str, file: pq.ParquetFile, number: int, wanted: Wanted
) -> Iterator[tuple[str, RowGroup, int]]:
    """Yield a row group's part in each split, with the number of its rows that lack the label."""
    table = file.read_row_group(number, ["split", LABEL_COLUMNS[wanted.column].presence])
    column = table[wanted.column].combine_chunks()
    if wanted.is_single:
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        has_label = pc.equal(lengths, 1).to_numpy(zero_copy_only=False)
    else:
        has_label = column.is_valid().to_numpy(zero_copy_only=False)
    meta = file.metadata.row_group(number)
    of_split = np.array(table["split"].to_pylist(), object)
    for split in dict.fromkeys(of_split.tolist()):
        is_here = of_split == split
        rows = np.flatnonzero(is_here & has_label)
        named = None if len(rows) == table.num_rows else tuple(rows.tolist())
        size = meta.total_byte_size * len(rows) // table.num_rows
        group = RowGroup(uri, number, named, len(rows), size)
        yield str(split), group, int(np.sum(is_here & ~has_label))


def _common_classes(files: Sequence[_File], wanted: Wanted) -> tuple[str, ...]:
    lacking = [file.uri for file in files if file.classes is None]
    if lacking:
        raise SourceError(
            f"{lacking[0]} has no column {wanted.column!r}, which this task learns; import labels "
            "of that kind, or name another task"
        )
    first = files[0]
    for file in files:
        if file.classes != first.classes:
            raise SourceError(
                f"classes differ: {file.uri} has {_shown(file.classes)}, {first.uri} has "
                f"{_shown(first.classes)}; import both with the same --classes"
            )
    if not first.classes:
        raise SourceError(f"{first.uri} names no classes for {wanted.column!r}; {_REMEDY}")
    return first.classes


def _shown(classes: tuple[str, ...] | None) -> str:
    names = classes or ()
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def box_shapes(
    storage: Storage, split: Split
) -> np.ndarray:  # (N, 2) float64 heights, widths as parts of the image
    """Return the shapes of all boxes of a split, of crowds too; no image is read."""
    shapes = [np.empty((0, 2))]
    leaves = ("x_min", "y_min", "x_max", "y_max")
    for group in split.groups:
        names = ["width", "height", *(f"boxes.list.element.{leaf}" for leaf in leaves)]
        with storage.open_input(group.uri) as source:
            table = pq.ParquetFile(source).read_row_group(group.number, names)
        if group.rows is not None:
            table = table.take(pa.array(group.rows, pa.int64()))
        boxes = table["boxes"].combine_chunks()
        of_image = np.repeat(
            np.arange(table.num_rows), pc.fill_null(pc.list_value_length(boxes), 0).to_numpy()
        )
        corners = boxes.flatten()
        at = [pc.struct_field(corners, leaf).to_numpy(zero_copy_only=False) for leaf in leaves]
        sides = np.stack([at[3] - at[1], at[2] - at[0]], axis=1)
        whole = np.stack([table[n].to_numpy() for n in ("height", "width")], axis=1)[of_image]
        shapes.append(sides / whole)
    found = np.concatenate(shapes)
    return found[(found > 0).all(axis=1)]
