"""Parse the objects of COCO, one at a time: what can be repaired is, and is counted.

pycocotools loads files with all of these faults, so they must not refuse a data set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from cvbatch.images.orientation import DEFAULT_LIMITS
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.parsing import shorten, to_key, to_number
from cvbatch.importers.polygons import Outline, outline_bounds, parse_outline

Box = tuple[float, float, float, float]


class CocoObject(NamedTuple):
    """One object of an image."""

    category_id: int | str
    box: Box  # half-open xyxy
    is_crowd: bool
    area: float  # pixels² of the outline, as the file declares it; NaN: not known
    outline: Outline | None  # None: no masks are imported, or there is none


class ObjectParser:
    """Parses objects and records their faults.

    Args:
        report: counts the faults.
        has_masks: outlines are needed, for masks of images or of boxes.
    """

    def __init__(self, report: ImportReport, *, has_masks: bool) -> None:
        self._report, self._has_masks = report, has_masks

    def parse(self, item: Mapping[str, Any], where: str) -> CocoObject | None:
        """Return an object; None if it has no usable category or box, which is recorded.

        Args:
            item: the JSON object.
            where: its place in the document, for the report.
        """
        category_id = to_key(item.get("category_id"))
        if category_id is None:
            value = shorten(repr(item.get("category_id")))
            self._report.record("object_invalid", f"{where}.category_id is {value}")
            return None
        outline = self._outline(item, where) if self._has_masks else None
        box = self._box(item, outline, where)
        if box is None:
            return None
        is_crowd, area = self._is_crowd(item, where), self._area(item, where)
        if _has_text(item.get("bbox"), item.get("area"), item.get("iscrowd")):
            self._report.record("number_text", where)
        return CocoObject(category_id, box, is_crowd, area, outline)

    def _outline(self, item: Mapping[str, Any], where: str) -> Outline | None:
        parsed = parse_outline(item.get("segmentation"))
        if parsed.faults:
            self._report.record("outline_invalid", f"{where}.segmentation: {parsed.faults[0]}")
        if parsed.outline is None:
            self._report.record("outline_missing", where)
        return parsed.outline

    def _box(self, item: Mapping[str, Any], outline: Outline | None, where: str) -> Box | None:
        """Return `bbox`, or the box around the outline if it has no area or is no box."""
        value = item.get("bbox")
        sides = [to_number(side) for side in value] if isinstance(value, list) else []
        box = None
        if len(sides) == 4 and all(map(math.isfinite, sides)):
            x_min, y_min, width, height = sides
            box = x_min, y_min, x_min + width, y_min + height
            if width > 0 and height > 0:
                return box
        if outline is None:
            outline = parse_outline(item.get("segmentation")).outline
        derived = outline_bounds(outline, DEFAULT_LIMITS.max_pixels) if outline else None
        if derived is not None:
            self._report.record("box_derived", f"{where}.bbox is {shorten(repr(value))}")
            return derived
        if box is None:
            example = f"{where}.bbox is {shorten(repr(value))}; it must be 4 finite numbers"
            self._report.record("box_invalid", example)
        return box

    def _area(self, item: Mapping[str, Any], where: str) -> float:
        value = item.get("area")
        area = to_number(value)
        if value is not None and not area >= 0:
            self._report.record("area_invalid", f"{where}.area is {shorten(repr(value))}")
            return math.nan
        return area

    def _is_crowd(self, item: Mapping[str, Any], where: str) -> bool:
        value = item.get("iscrowd", 0)
        if isinstance(value, bool):
            return value
        number = to_number(value)
        if math.isnan(number):
            self._report.record("crowd_unclear", f"{where}.iscrowd is {shorten(repr(value))}")
        return not math.isnan(number) and number != 0


def _has_text(*values: object) -> bool:
    """Return whether one of the values, or of the numbers in a list, is a text."""
    return any(
        isinstance(value, str) or (isinstance(value, list) and any(map(_is_text, value)))
        for value in values
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)
