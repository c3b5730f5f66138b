"""Run an export: check the source, write the files of each image, then the documents.

The documents, which other tools read first, are written last, and after them the completion state.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cvbatch.core.errors import ConfigError, CvbatchError, SourceError
from cvbatch.core.progress import Listener
from cvbatch.datasets.splits import choose_split
from cvbatch.exporters.base import SPLIT_NAMES, ExportContext, Exporter, ImageTarget
from cvbatch.exporters.coco import Coco
from cvbatch.exporters.fiftyone import FiftyOne
from cvbatch.exporters.folder import ExportFolder, open_folder
from cvbatch.exporters.json_stream import ItemSpool, to_json, write_document
from cvbatch.exporters.options import ExportOptions
from cvbatch.exporters.rows import (
    ImageRow,
    name_collisions,
    read_with_images,
)
from cvbatch.exporters.sources import ExportSource, open_source
from cvbatch.exporters.voc import Voc
from cvbatch.exporters.yolo import Yolo, YoloSegment
from cvbatch.images.orientation import ImageInfo, read_image_info
from cvbatch.images.signatures import detect_format, suffix_of_format
from cvbatch.results.safe_names import split_name, unique_stem
from cvbatch.storage import store
from cvbatch.storage.store import Storage

EXPORTS: dict[str, type[Exporter]] = {
    "coco": Coco,
    "voc": Voc,
    "yolo": Yolo,
    "yolo-segment": YoloSegment,
    "fiftyone": FiftyOne,
}
IMAGES = "_cvbatch/images.jsonl"  # image_id → its name in the export
FAILED = "_cvbatch/failed.jsonl"
_ROTATED = "images with an EXIF orientation; boxes and masks are of the upright image"


@dataclass
class ExportReport:
    """Result of an export: counts of images, boxes, failures and warnings."""

    format: str
    num_images: int = 0
    num_objects: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)  # "stage, kind" → images left out
    num_missing: int = 0  # images of pending chunks
    warnings: dict[str, int] = field(default_factory=dict)  # message → count

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {
            "format": self.format,
            "images": {
                "written": self.num_images,
                "failed": self.failures.total(),
                "not_predicted": self.num_missing,
            },
            "boxes": self.num_objects,
            "splits": dict(self.splits),
            "failures": dict(sorted(self.failures.items())),
            "odd": self.warnings,
        }

    @property
    def left_out_text(self) -> str:
        """Return which images are not exported, and why, as the end of a sentence; or ""."""
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.failures.most_common(5))
        text = f", {self.failures.total():,} failed ({kinds})" if kinds else ""
        if self.num_missing:
            text += f"; at least {self.num_missing:,} images are not predicted yet"
        return text

    def as_text(self) -> str:
        """Return the report as aligned text lines."""
        lines = [f"images   {self.num_images:,} written, {self.failures.total():,} failed"]
        lines.append(f"boxes    {self.num_objects:,}")
        lines += [f"  {split:<6} {count:,} images" for split, count in self.splits.items() if count]
        lines += [f"failed   {kind}: {count:,}" for kind, count in self.failures.most_common()]
        if self.num_missing:
            lines.append(f"pending  at least {self.num_missing:,} images are not predicted yet")
        lines += [f"issue    {message}: {count:,}" for message, count in self.warnings.items()]
        return "\n".join(lines)


def export(
    format_: str, source: str, sink: str, options: ExportOptions, listener: Listener
) -> ExportReport:
    """Convert a result or labelled Parquet to the format of another tool.

    Args:
        format_: a key of EXPORTS.
        source: URI of the result, or of labelled Parquet.
        sink: URI of an empty folder.
        options: minimum score, split, images, overwrite.
        listener: receives the progress.

    Raises:
        RefusedError: the export cannot be done; nothing was written.
        CvbatchError: interrupted before it finished; the same call starts again.
    """
    listener.phase("reading the source")
    storage, sink = Storage(), store.absolute(sink)
    exporter_class = EXPORTS[format_]
    exported = open_source(storage, source)
    classes = _stored_classes(exporter_class, format_, exported)
    has_links = options.images == "link"
    if has_links and store.Location.of(sink).scheme != "file":
        raise ConfigError(f"--images link: {sink} is not a local folder; use --images copy")
    collisions, num_images = name_collisions(
        exported, is_flat=exporter_class.IS_FLAT, has_links=has_links
    )
    names = sorted(exporter_class.OUTPUT_NAMES)
    with open_folder(
        storage, sink, exported.uri, format_, names, overwrite=options.overwrite
    ) as folder:
        has_images = options.images != "none"
        is_inside = not exported.can_link
        context = ExportContext(folder, classes, has_images, is_inside, exported)
        run = _Run(exporter_class(context), folder, options, collisions, ExportReport(format_))
        listener.phase("exporting", num_images, "images")
        try:
            for number, image in enumerate(read_with_images(exported, tuple(classes), options), 1):
                run.add(image, is_inside=exported.has_keys)
                listener.advanced(number)
        except SourceError as error:  # not RefusedError: files were written
            raise CvbatchError(f"{exported.uri}: {error}") from None
        report = run.finish()
        report.num_missing = exported.num_missing
        folder.write_state(
            {"is_complete": True, **report.as_json(), "source": exported.uri, "tops": names}
        )
    return report


def _stored_classes(
    exporter_class: type[Exporter], format_: str, source: ExportSource
) -> dict[str, tuple[str, ...]]:
    """Return the class table of each column that the format stores.

    Raises:
        ConfigError: the result has no such column, or the format cannot store a class name.
    """
    columns = exporter_class.COLUMNS
    classes = {column: names for column, names in source.classes.items() if column in columns}
    if not classes:
        available = " and ".join(source.classes) or "none of them"
        raise ConfigError(
            f"{format_} stores {' and '.join(columns)}, but {source.uri} has {available}; export "
            "another result, or use fiftyone, which stores labels, boxes and masks"
        )
    for column, names in classes.items():
        exporter_class.check_classes(column, names)
    return classes


class _Run:
    """Writes the images of one export and counts them."""

    def __init__(
        self,
        exporter: Exporter,
        folder: ExportFolder,
        options: ExportOptions,
        collisions: frozenset[int],
        report: ExportReport,
    ) -> None:
        self._exporter = exporter
        self._folder = folder
        self._options = options
        self._collisions = collisions
        self._report = report
        self._names, self._failed = ItemSpool(folder, "\n"), ItemSpool(folder, "\n")
        self._num_rotated = 0

    def add(self, image: ImageRow, *, is_inside: bool) -> None:
        """Write the files of an image, or record why it is not exported."""
        row, _, data, failure = image
        if failure is not None:
            self._report.failures[f"{failure.stage}, {failure.kind}"] += 1
            entry = {"image_id": row.image_id, "uri": row.uri, "stage": failure.stage}
            self._failed.add(to_json({**entry, "kind": failure.kind, "message": failure.message}))
            return
        target = self._target(image, is_inside)
        if data is not None:
            self._count_rotated(data)
            self._folder.put(self._exporter.image_file(target), data)
        elif self._options.images == "link":
            self._folder.link(self._exporter.image_file(target), row.uri)
        self._exporter.add(row, target)
        entry = {"image_id": row.image_id, "name": target.name, "split": target.split}
        self._names.add(to_json(entry))
        self._report.num_images += 1
        self._report.num_objects += len(row.boxes or ())
        self._report.splits[target.split] += 1

    def _target(self, image: ImageRow, is_inside: bool) -> ImageTarget:
        image_id, data = image.row.image_id, image.data
        stem, suffix = split_name(image_id, is_inside=is_inside, is_flat=self._exporter.IS_FLAT)
        if not suffix and data is not None:
            suffix = f".{suffix_of_format(detect_format(data))}"
        stem = unique_stem(stem, image_id, self._collisions)
        shares = self._options.split or (1.0, 0.0, 0.0)
        declared = None if self._options.split else image.split
        split = choose_split(image_id, declared, shares, self._options.seed)
        return ImageTarget(stem, suffix, SPLIT_NAMES[split])

    def _count_rotated(self, data: bytes) -> None:
        info = read_image_info(data)
        self._num_rotated += isinstance(info, ImageInfo) and info.orientation != 1

    def finish(self) -> ExportReport:
        """Wait for all files, write the documents and return the report."""
        self._folder.wait()
        write_document(self._folder, IMAGES, (self._names, "\n"))
        write_document(self._folder, FAILED, (self._failed, "\n" if self._failed.count else ""))
        self._exporter.close()
        self._folder.wait()
        rotated = {_ROTATED: self._num_rotated} if self._num_rotated else {}
        self._report.warnings = {**rotated, **self._exporter.warnings}
        return self._report
