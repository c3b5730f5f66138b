"""An export from a result to its report: look at all files, then write image after image.

What the other tool reads first is written last, and the mark that says it is whole after that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cvbatch.core.errors import ConfigError, CvbatchError, SourceError
from cvbatch.datasets.splits import choose_split
from cvbatch.exporters.base import SPLIT_NAMES, Format, Placed, Plan
from cvbatch.exporters.coco import Coco
from cvbatch.exporters.fiftyone import FiftyOne
from cvbatch.exporters.folder import Folder, begin
from cvbatch.exporters.json_stream import Items, plain, put_document
from cvbatch.exporters.options import ExportOptions
from cvbatch.exporters.rows import (
    ImageRow,
    is_in_containers,
    name_collisions,
    read_with_images,
)
from cvbatch.exporters.voc import Voc
from cvbatch.exporters.yolo import Yolo
from cvbatch.images.orientation import ImageInfo, read_image_info
from cvbatch.images.signatures import detect_format
from cvbatch.results.result import Result
from cvbatch.results.safe_names import split_name, unique_stem
from cvbatch.storage import store
from cvbatch.storage.store import Storage

EXPORTS: dict[str, type[Format]] = {
    "coco": Coco,
    "voc": Voc,
    "yolo": Yolo,
    "fiftyone": FiftyOne,
}
IMAGES = "_cvbatch/images.jsonl"  # image_id → its name in the export
FAILED = "_cvbatch/failed.jsonl"
_REPORTED_IMAGES = 2000
_TURNED = "images with an EXIF orientation; boxes and masks are of the upright image"

Say = Callable[[str], None]


@dataclass
class ExportReport:
    """What an export came to."""

    format: str
    num_images: int = 0
    num_objects: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)  # "stage, kind" → images left out
    num_missing: int = 0  # images of chunks that no run has done yet
    odd: dict[str, int] = field(default_factory=dict)

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
            "odd": self.odd,
        }

    def as_text(self) -> str:
        """Return the report as a person reads it."""
        lines = [f"images   {self.num_images:,} written, {self.failures.total():,} failed"]
        lines.append(f"boxes    {self.num_objects:,}")
        lines += [f"  {split:<6} {count:,} images" for split, count in self.splits.items() if count]
        lines += [f"failed   {kind}: {count:,}" for kind, count in self.failures.most_common()]
        if self.num_missing:
            lines.append(f"missing  {self.num_missing:,} images or more are not predicted yet")
        lines += [f"odd      {what}: {count:,}" for what, count in self.odd.items()]
        return "\n".join(lines)


def export(format_: str, source: str, sink: str, options: ExportOptions, say: Say) -> ExportReport:
    """Write a result in another tool's format; return what became of its images.

    format_: a key of EXPORTS.

    Raises:
        RefusedError: nothing was written.
        CvbatchError: stopped midway; the same call begins again.
    """
    storage, sink = Storage(), store.absolute(sink)
    kind = EXPORTS[format_]
    result = Result(storage, source, needs_rows=True)
    classes = _classes_kept(kind, format_, result)
    has_links = options.images == "link"
    if has_links and store.Location.of(sink).scheme != "file":
        raise ConfigError(f"--images link: {sink} is not on this machine; say --images copy")
    collisions = name_collisions(result, is_flat=kind.IS_FLAT, has_links=has_links)
    is_inside = is_in_containers(result)
    with begin(
        storage, sink, result.uri, format_, kind.TOPS, overwrite=options.overwrite
    ) as folder:
        has_images = options.images != "none"
        plan = Plan(folder, classes, has_images, is_inside, result.is_multi_label)
        run = _Run(kind(plan), folder, options, collisions, ExportReport(format_))
        try:
            for number, image in enumerate(read_with_images(result, tuple(classes), options), 1):
                run.take(image, is_inside=is_inside)
                if number % _REPORTED_IMAGES == 0:
                    say(f"exported {number:,} images")
        except SourceError as error:  # too late to refuse: files of the export are there
            raise CvbatchError(f"{result.uri}: {error}") from None
        report = run.finish()
        report.num_missing = sum(max(1, ref.num_images) for ref in result.missing)
        tops = sorted(kind.TOPS)
        folder.mark({"is_complete": True, **report.as_json(), "source": result.uri, "tops": tops})
    return report


def _classes_kept(kind: type[Format], format_: str, result: Result) -> dict[str, tuple[str, ...]]:
    """Return the class table of each column that the format keeps.

    Raises:
        ConfigError: there is no such column, or a name that the format cannot hold.
    """
    kept = {column: names for column, names in result.classes.items() if column in kind.COLUMNS}
    if not kept:
        has = " and ".join(result.classes) or "none of them"
        raise ConfigError(
            f"{format_} keeps {' and '.join(kind.COLUMNS)}, and {result.uri} has {has}; export "
            "another result, or as fiftyone, which keeps labels, boxes and masks"
        )
    for column, names in kept.items():
        kind.check_classes(column, names)
    return kept


class _Run:
    """Takes the images of one export."""

    def __init__(
        self,
        format_: Format,
        folder: Folder,
        options: ExportOptions,
        collisions: frozenset[int],
        report: ExportReport,
    ) -> None:
        self._format = format_
        self._folder = folder
        self._options = options
        self._collisions = collisions
        self._report = report
        self._names, self._failed = Items(folder, "\n"), Items(folder, "\n")
        self._num_turned = 0

    def take(self, image: ImageRow, *, is_inside: bool) -> None:
        """Write an image's files, or record why there are none."""
        row, data, failure = image
        if failure is not None:
            self._report.failures[f"{failure.stage}, {failure.kind}"] += 1
            named = {"image_id": row.image_id, "uri": row.uri, "stage": failure.stage}
            self._failed.add(plain({**named, "kind": failure.kind, "message": failure.message}))
            return
        placed = self._place(row.image_id, data, is_inside)
        if data is not None:
            self._note_turned(data)
            self._folder.put(self._format.image_file(placed), data)
        elif self._options.images == "link":
            self._folder.link(self._format.image_file(placed), row.uri)
        self._format.add(row, placed)
        named = {"image_id": row.image_id, "name": placed.name, "split": placed.split}
        self._names.add(plain(named))
        self._report.num_images += 1
        self._report.num_objects += len(row.boxes or ())
        self._report.splits[placed.split] += 1

    def _place(self, image_id: str, data: bytes | None, is_inside: bool) -> Placed:
        stem, suffix = split_name(image_id, is_inside=is_inside, is_flat=self._format.IS_FLAT)
        if not suffix and data is not None:
            suffix = f".{(detect_format(data) or 'bin').lower()}"
        stem = unique_stem(stem, image_id, self._collisions)
        shares = self._options.split or (1.0, 0.0, 0.0)
        split = choose_split(image_id, None, shares, self._options.seed)
        return Placed(stem, suffix, SPLIT_NAMES[split])

    def _note_turned(self, data: bytes) -> None:
        picture = read_image_info(data)
        self._num_turned += isinstance(picture, ImageInfo) and picture.orientation != 1

    def finish(self) -> ExportReport:
        """Write the documents once all files are there; return the report."""
        self._folder.wait()
        put_document(self._folder, IMAGES, (self._names, "\n"))
        put_document(self._folder, FAILED, (self._failed, "\n" if self._failed.count else ""))
        self._format.close()
        self._folder.wait()
        odd = {_TURNED: self._num_turned} if self._num_turned else {}
        self._report.odd = {**odd, **self._format.odd}
        return self._report
