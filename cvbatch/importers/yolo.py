"""Parse YOLO: a text file for each image, a row for each box or polygon, relative to its size.

A row is `class x y width height`, where x, y is the centre; the same with a confidence at the end;
or `class x1 y1 x2 y2 x3 y3 ...`. Its box is then that around the polygon. Images without a label
file have no objects. Tools that read YOLO apply the EXIF orientation, so labels refer to the
upright image.

Source: docs.ultralytics.com/datasets/detect, /segment; ultralytics/data/utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from cvbatch.core.errors import ConfigError
from cvbatch.importers.annotations import (
    UNKNOWN_CLASS,
    AnnotatedDataset,
    Annotation,
    one_batch,
)
from cvbatch.importers.class_table import ClassTable
from cvbatch.importers.dataset_files import in_threads, to_item
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.outline_masks import outlined_dataset
from cvbatch.importers.parsing import MAX_XML_BYTES, read_bytes, shorten, to_number
from cvbatch.importers.yolo_layout import YoloImage, YoloLayout, find_yolo
from cvbatch.storage.store import Storage

_ROUNDING = 2e-6  # of an edge: centre and size have six decimals
_BOX_NUMBERS = 4
_MIN_POLYGON_NUMBERS = 6


class _Row(NamedTuple):
    """A row of a label file, relative to the size of the image."""

    class_number: int
    box: tuple[float, float, float, float]  # half-open xyxy
    score: float
    polygon: np.ndarray | None  # (K, 2)


class _ParsedFile(NamedTuple):
    rows: list[_Row]
    issues: list[tuple[str, str]]  # kind, example; each is a dropped row


def read_yolo(source: str, options: ImportOptions, report: ImportReport) -> AnnotatedDataset:
    """Return the annotations of a YOLO data set.

    Raises:
        SourceError: the folder is no YOLO data set.
        ConfigError: the class names are not known, or there are too many for a mask.
    """
    layout = find_yolo(source, options, report)
    names = layout.names or options.classes
    if names is None:
        raise ConfigError(
            f"{source} has no data.yaml with names, classes.txt or obj.names: set --classes to the "
            "class names in the order of their numbers"
        )
    table = ClassTable.of(names, options.classes)
    class_of = table.ids(names)
    rows = _rows_by_id(layout, options, report)
    has_split = options.split is not None
    annotations = {
        image.file.image_id: _annotation(
            image, rows[image.file.image_id], class_of, has_split=has_split
        )
        for image in layout.images
    }
    return outlined_dataset(
        table,
        ("labels", "boxes", "box_is_crowd"),
        one_batch(options.storage, (to_item(image.file) for image in layout.images), annotations),
        options,
        is_upright=options.orientation != "stored",
    )


def _rows_by_id(
    layout: YoloLayout, options: ImportOptions, report: ImportReport
) -> dict[str, list[_Row]]:
    """Return the rows of each image; record the others."""
    rows = {}
    parse = partial(_parse_file, options.storage, has_keypoints=layout.has_keypoints)
    for image, file in in_threads(parse, layout.images):
        report.num_objects_found += len(file.issues)
        for kind, example in file.issues:
            report.record(kind, example)
        rows[image.file.image_id] = file.rows
        num_boxes = sum(row.polygon is None for row in file.rows)
        if (options.has_masks or options.has_box_masks) and num_boxes:
            example = image.label.uri if image.label else image.file.uri
            report.record("outline_missing", example, num_boxes)
    return rows


def _parse_file(storage: Storage, image: YoloImage, *, has_keypoints: bool) -> _ParsedFile:
    rows: list[_Row] = []
    issues: list[tuple[str, str]] = []
    if image.label is None:
        return _ParsedFile(rows, issues)
    # Bytes that are not UTF-8 are in rows that are no numbers, which are counted.
    text = read_bytes(storage, image.label.uri, MAX_XML_BYTES).decode("utf-8-sig", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        row = _parse_row(line, has_keypoints=has_keypoints)
        if isinstance(row, _Row):
            rows.append(row)
        else:
            issues.append((row, f"{image.label.uri}, line {number}: {shorten(repr(line))}"))
    return _ParsedFile(rows, issues)


def _parse_row(line: str, *, has_keypoints: bool) -> _Row | str:
    """Return a row, or the kind of its issue."""
    first, *rest = map(to_number, line.split())
    if not first >= 0 or first != first // 1:
        return "object_invalid"
    count = len(rest)
    is_polygon = count >= _MIN_POLYGON_NUMBERS and count % 2 == 0 and not has_keypoints
    if has_keypoints and count > _BOX_NUMBERS:
        rest = rest[:_BOX_NUMBERS]
    is_box = len(rest) in (_BOX_NUMBERS, _BOX_NUMBERS + 1)
    if not (is_polygon or is_box) or not all(map(math.isfinite, rest)):
        return "box_invalid"
    if is_polygon:
        polygon = np.array(rest, np.float64).reshape(-1, 2)
        (x_min, y_min), (x_max, y_max) = polygon.min(axis=0), polygon.max(axis=0)
        return _Row(int(first), _snapped(x_min, y_min, x_max, y_max), 1.0, polygon)
    x, y, width, height, *score = rest
    if score and not 0 <= score[0] <= 1:
        return "box_invalid"
    box = _snapped(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return _Row(int(first), box, score[0] if score else 1.0, None)


def _snapped(*edges: float) -> tuple[float, float, float, float]:
    """Return edges that rounding moved out of the image on its border."""
    limits = (min(max(float(edge), 0.0), 1.0) for edge in edges)
    x_min, y_min, x_max, y_max = (
        limit if abs(edge - limit) <= _ROUNDING else float(edge)
        for edge, limit in zip(edges, limits, strict=True)
    )
    return x_min, y_min, x_max, y_max


def _class_id(row: _Row, class_of: np.ndarray) -> int:
    is_known = row.class_number < len(class_of)
    return int(class_of[row.class_number]) if is_known else UNKNOWN_CLASS


def _annotation(
    image: YoloImage, rows: Sequence[_Row], class_of: np.ndarray, *, has_split: bool
) -> Annotation:
    return Annotation(
        image_id=image.file.image_id,
        split=None if has_split else image.split,
        boxes=np.array([row.box for row in rows], np.float64).reshape(-1, 4),
        is_relative=True,
        class_id=np.array([_class_id(row, class_of) for row in rows], np.int32),
        score=np.array([row.score for row in rows], np.float32),
        is_crowd=np.zeros(len(rows), bool),
        outlines=[None if row.polygon is None else [row.polygon] for row in rows],
    )
