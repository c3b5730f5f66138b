"""What can be exported: the result of a prediction, or labelled Parquet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple, cast

from cvbatch.core.errors import SourceError
from cvbatch.core.types import ChunkRef, EncodedImage
from cvbatch.datasets.reader import list_parquet_files
from cvbatch.datasets.schema import expand_label_columns, stored_metadata
from cvbatch.results.parts import read_errors
from cvbatch.results.result import Result, Row
from cvbatch.storage import store
from cvbatch.storage.parquet import ParquetFile
from cvbatch.storage.store import Storage

_NAME_ROWS = 1 << 16
_ROWS = 64  # labelled rows with their images in memory


class NamedRow(NamedTuple):
    """A row, and the split that it declares."""

    row: Row
    split: str | None  # None: a hash decides


class ExportSource(ABC):
    """Rows and images to export.

    Attributes:
        uri: of the source.
        classes: class names of those of labels, boxes and mask that it has; box_masks has those of
            boxes.
        is_multi_label: an image may have several labels.
        is_truth: labels, not predictions: there are no scores.
        has_keys: ids of images are keys in containers, without the suffix of an image.
        can_link: images are files of their own.
        num_missing: images without a row yet.
    """

    uri: str
    classes: dict[str, tuple[str, ...]]
    is_multi_label: bool
    is_truth: bool
    has_keys: bool
    can_link: bool
    num_missing: int

    @abstractmethod
    def names(self) -> Iterator[tuple[list[str], list[str]]]:
        """Yield the ids and the URIs of images, in the order of the rows."""

    @abstractmethod
    def parts(self, columns: Sequence[str]) -> Iterator[tuple[Iterator[NamedRow], Any]]:
        """Yield rows with some of the columns of `classes`, and an iterator of images.

        The images are read with the first `next`; they have the order of the rows.
        """


def _with_box_masks(
    classes: dict[str, tuple[str, ...]], columns: Collection[str]
) -> dict[str, tuple[str, ...]]:
    return classes | {"box_masks": classes["boxes"]} if "box_masks" in columns else classes


class PredictionSource(ExportSource):
    """The completed chunks of a prediction."""

    is_truth = False

    def __init__(self, storage: Storage, uri: str) -> None:
        self._result = Result(storage, uri, needs_rows=True)
        self.uri = self._result.uri
        self.classes = _with_box_masks(self._result.classes, self._result.footer.columns)
        self.is_multi_label = self._result.is_multi_label
        self.has_keys = self._result.reader.format.key != ""
        self.can_link = not self.has_keys
        self.num_missing = sum(max(1, ref.num_images) for ref in self._result.missing)

    def names(self) -> Iterator[tuple[list[str], list[str]]]:
        """Yield the ids and the URIs of images, in the order of the rows."""
        for ref in self._result.done:
            for batch in self._result.batches(ref, ("image_id", "uri"), _NAME_ROWS):
                yield batch["image_id"].to_pylist(), batch["uri"].to_pylist()

    def parts(self, columns: Sequence[str]) -> Iterator[tuple[Iterator[NamedRow], Any]]:
        """Yield the rows and the images of each chunk."""
        for ref in self._result.done:
            with closing(self._result.images(ref)) as images:
                yield self._rows(ref, columns), images

    def _rows(self, ref: ChunkRef, columns: Sequence[str]) -> Iterator[NamedRow]:
        needed = (*columns, "boxes") if "box_masks" in columns else columns  # one mask for each
        return (NamedRow(row, None) for row in self._result.rows(ref, needed))


class LabelledSource(ExportSource):
    """Labelled Parquet, whose boxes may also have an area and be crowds."""

    is_truth = True
    has_keys = False
    can_link = False
    num_missing = 0

    def __init__(self, storage: Storage, uri: str) -> None:
        self.uri, self._storage = store.absolute(uri), storage
        self._files = [name for name, _ in list_parquet_files(storage, self.uri)]
        tables = [self._metadata(file) for file in self._files]
        for file, table in zip(self._files, tables, strict=True):
            if table != tables[0]:
                raise SourceError(
                    f"{file} and {self._files[0]} differ in their columns or classes; export them "
                    "one by one"
                )
        classes = {name: tuple(names) for name, names in tables[0]["classes"].items()}
        self.classes = _with_box_masks(classes, tables[0]["columns"])
        self.is_multi_label = bool(tables[0]["is_multi_label"])
        # Masks are stored at the size of the image.
        self.models: dict[str, Any] = {"mask": {"options": {}}}

    def _metadata(self, uri: str) -> dict[str, Any]:
        with read_errors(uri), self._storage.open_input(uri) as source:
            file = ParquetFile(source)
            document = stored_metadata(file, uri, needs_images=True)
        columns = [name for name in document["columns"] if name == "box_masks"]
        return {key: document[key] for key in ("classes", "is_multi_label")} | {"columns": columns}

    def names(self) -> Iterator[tuple[list[str], list[str]]]:
        """Yield the ids of images, with the URI of their file."""
        for uri, batch in self._batches(["image_id"], _NAME_ROWS):
            ids = batch["image_id"].to_pylist()
            yield ids, [uri] * len(ids)

    def parts(self, columns: Sequence[str]) -> Iterator[tuple[Iterator[NamedRow], Any]]:
        """Yield some rows and their images."""
        needed = dict.fromkeys("boxes" if name == "box_masks" else name for name in columns)
        wanted = ["image_id", "image", "width", "height", "split", *expand_label_columns(needed)]
        for uri, batch in self._batches(wanted, _ROWS):
            values = batch.to_pylist()
            rows = (NamedRow(self._row(row, uri), row["split"]) for row in values)
            images = (
                EncodedImage(row["image_id"], uri, (row["image"] or {}).get("bytes") or b"")
                for row in values
            )
            yield rows, images

    def _batches(self, columns: Sequence[str], num_rows: int) -> Iterator[tuple[str, Any]]:
        for uri in self._files:
            with read_errors(uri), self._storage.open_input(uri) as source:
                file = ParquetFile(source)
                present = [name for name in columns if name in file.schema_arrow.names]
                for batch in file.iter_batches(num_rows, columns=present):
                    yield uri, batch

    def _row(self, values: dict[str, Any], uri: str) -> Row:
        boxes = values.get("boxes")
        if boxes is not None:
            for key, column in (("is_crowd", "box_is_crowd"), ("area", "box_area")):
                for box, value in zip(boxes, values.get(column) or [], strict=False):
                    box[key] = value
        row = {**values, "status": "ok", "error": None, "uri": f"{uri}#{values['image_id']}"}
        return Row.of(row, cast("Result", self), ChunkRef(uri, uri, 0, 0, 0, 0, 0))


def open_source(storage: Storage, uri: str) -> ExportSource:
    """Return what a folder or file contains.

    Raises:
        SourceError: it is neither the result of a prediction nor labelled Parquet.
    """
    absolute = store.absolute(uri)
    is_truth = absolute.endswith(".parquet") or storage.exists(
        store.join(absolute, "_cvbatch/import.json")
    )
    return LabelledSource(storage, uri) if is_truth else PredictionSource(storage, uri)
