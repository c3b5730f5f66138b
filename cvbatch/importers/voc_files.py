"""Parse one XML file of Pascal VOC: what can be repaired is, and is returned as an issue."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from typing import NamedTuple

import numpy as np

from cvbatch.core.errors import SourceError
from cvbatch.importers.parsing import read_xml, shorten, to_number
from cvbatch.storage.store import Storage

Box = tuple[float, float, float, float]
_SIDES = ("height", "width")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ROTATED = ("cx", "cy", "w", "h", "angle")  # of roLabelImg's <robndbox>, the angle in radians
_FALSE_TEXTS = ("", "false", "no", "n", "none")
_TRUE_TEXTS = ("true", "yes", "y")


class ParsedFile(NamedTuple):
    """The content of one XML file."""

    file_name: str  # of the image; "": not declared
    names: list[str]  # M
    boxes: np.ndarray  # (M, 4) float64
    is_difficult: list[bool]  # M
    declared_hw: tuple[int, int] | None
    num_dropped: int  # objects without a usable class or box
    issues: list[tuple[str, str]]  # kind, example


def parse_file(storage: Storage, uri: str) -> ParsedFile:
    """Return the content of an XML file.

    Raises:
        SourceError: it is not an annotation of Pascal VOC.
    """
    root = read_xml(storage, uri)
    if root.tag != "annotation":
        raise SourceError(f"{uri} is a <{root.tag[:40]}>, not a Pascal VOC <annotation>")
    issues: list[tuple[str, str]] = []
    names, boxes, is_difficult = [], [], []
    objects = root.findall("object")
    for i, item in enumerate(objects):
        where = f"{uri}: object {i + 1}"
        name = (item.findtext("name") or "").strip()
        if not name:
            issues.append(("object_invalid", f"{where}: name is {item.findtext('name')}"))
            continue
        box = _box(item, where, issues)
        if box is not None:
            names.append(name)
            boxes.append(box)
            is_difficult.append(_is_difficult(item, where, issues))
    return ParsedFile(
        (root.findtext("filename") or "").strip(),
        names,
        np.array(boxes, np.float64).reshape(-1, 4),
        is_difficult,
        _declared_size(root, uri, issues),
        len(objects) - len(names),
        issues,
    )


def _box(item: ET.Element, where: str, issues: list[tuple[str, str]]) -> Box | None:
    """Return the box of an object, or the box around its rotated box or polygon."""
    element = item.find("bndbox")
    corners = [to_number(_text(element, corner)) for corner in _CORNERS]
    if not all(map(math.isfinite, corners)):
        derived = _corners_of_outline(item)
        if derived is None:
            values = "missing" if element is None else [_text(element, c) for c in _CORNERS]
            example = f"{where}: bndbox is {shorten(str(values))}; it must be 4 finite numbers"
            issues.append(("box_invalid", example))
            return None
        issues.append(("box_derived", where))
        corners = derived
    x_min, y_min, x_max, y_max = corners
    # In a click the last pixel is the first one, which gives an empty half-open box.
    right = x_max if x_max > x_min else x_min - 1
    bottom = y_max if y_max > y_min else y_min - 1
    return x_min - 1, y_min - 1, right, bottom


def _text(element: ET.Element | None, tag: str) -> str:
    return "" if element is None else element.findtext(tag) or ""


def _corners_of_outline(item: ET.Element) -> list[float] | None:
    """Return xmin, ymin, xmax, ymax of the first usable outline of an object."""
    outlines = (
        _rotated_corners(item.find("robndbox")),
        _polygon_corners(item.find("polygon")),
        _polygon_corners(item.find("segmentation")),
    )
    for corners in outlines:  # (K, 2)
        if len(corners) >= 3 and np.isfinite(corners).all():
            return [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]
    return None


def _rotated_corners(element: ET.Element | None) -> np.ndarray:  # (4, 2)
    x, y, width, height, angle = (to_number(_text(element, tag)) for tag in _ROTATED)
    if not all(map(math.isfinite, (x, y, width, height, angle))):
        return np.empty((0, 2))
    half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, height / 2]
    cos, sin = math.cos(angle), math.sin(angle)
    corners: np.ndarray = half @ np.array([[cos, sin], [-sin, cos]]) + [x, y]
    return corners


def _polygon_corners(element: ET.Element | None) -> np.ndarray:  # (K, 2)
    """Return the corners in <x1>, <y1>, <x2>, ... or in <pt> or <point> with <x> and <y>."""
    if element is None:
        return np.empty((0, 2))
    points = [point for tag in ("pt", "point") for point in element.findall(tag)]
    if points:
        pairs = [(_text(point, "x"), _text(point, "y")) for point in points]
    else:
        pairs = []
        while (x := element.findtext(f"x{len(pairs) + 1}")) is not None:
            pairs.append((x, _text(element, f"y{len(pairs) + 1}")))
    return np.array([list(map(to_number, pair)) for pair in pairs], np.float64).reshape(-1, 2)


def _is_difficult(item: ET.Element, where: str, issues: list[tuple[str, str]]) -> bool:
    """Return whether an object is difficult; every text that is not clearly yes means no."""
    text = (item.findtext("difficult") or "").strip().lower()
    number = to_number(text)
    if math.isfinite(number):
        return number != 0
    if text not in _FALSE_TEXTS and text not in _TRUE_TEXTS:
        issues.append(("difficult_unclear", f"{where}: difficult is {shorten(repr(text))}"))
    return text in _TRUE_TEXTS


def _declared_size(
    root: ET.Element, uri: str, issues: list[tuple[str, str]]
) -> tuple[int, int] | None:
    """Return (height, width), or None: many tools omit the size or write 0."""
    size = root.find("size")
    texts = [_text(size, side).strip() for side in _SIDES]
    if size is None or not all(texts):
        return None
    height, width = map(to_number, texts)
    if not (height >= 0 and width >= 0):
        issues.append(("size_invalid", f"{uri}: height and width are {shorten(str(texts))}"))
        return None
    return (int(height), int(width)) if height >= 1 and width >= 1 else None
