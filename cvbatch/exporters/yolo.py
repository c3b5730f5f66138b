"""Write YOLO: a text file for each image, a line for each box or polygon, relative to its size.

Boxes are clipped to the image, because tools reject an image with a coordinate above 1; boxes
without an area inside the image are left out and counted. YOLO stores no scores. Polygons are those
of the masks of boxes, or else the connected parts of each class of a mask, along the edges of
pixels; the background is no class.

Source: https://docs.ultralytics.com/datasets/detect, https://docs.ultralytics.com/datasets/segment
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import yaml

from cvbatch.exporters.base import SPLIT_NAMES, ExportContext, Exporter, ImageTarget
from cvbatch.exporters.contours import trace_object, trace_regions
from cvbatch.results.parts import box_corners
from cvbatch.results.row import Row

_CROWD = "crowds and difficult objects, which YOLO cannot mark, left out"
_NO_PIXEL = "boxes without a pixel in their mask, left out"
_NO_AREA = "boxes without an area in their image, left out"


class Yolo(Exporter):
    """Writes YOLO."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("boxes",)
    OUTPUT_NAMES = ("images", "labels", "data.yaml")
    IS_FLAT = True  # some tools do not search subfolders

    def __init__(self, context: ExportContext) -> None:
        super().__init__(context)
        self._num_images = dict.fromkeys(SPLIT_NAMES.values(), 0)

    def image_file(self, target: ImageTarget) -> str:
        """Return the path of an image file below the export's folder."""
        return f"images/{target.split}/{target.name}"

    @property
    def _names(self) -> dict[int, str]:
        """Class names by number."""
        return dict(enumerate(self.context.classes["boxes"]))

    def add(self, row: Row, target: ImageTarget) -> None:
        """Write the text file of an image; it is empty for an image without objects."""
        self._num_images[target.split] += 1
        name = f"labels/{target.split}/{target.stem}.txt"
        self.context.folder.put(name, "".join(self._lines(row)).encode())

    def _lines(self, row: Row) -> list[str]:
        size, xyxy = np.array(row.size_hw[::-1]), box_corners(row.boxes)
        first, last = (np.clip(xyxy[:, i : i + 2], 0, size) for i in (0, 2))
        has_area = (last > first).all(axis=1)
        if not has_area.all():
            self.warnings[_NO_AREA] += int((~has_area).sum())
        is_crowd = np.array([bool(box.get("is_crowd")) for box in row.boxes or ()], bool)
        if is_crowd.any():
            self.warnings[_CROWD] += int(is_crowd.sum())
            has_area &= ~is_crowd
        relative = np.concatenate([(first + last) / 2 / size, (last - first) / size], axis=1)
        boxes = zip(row.boxes or (), relative.tolist(), has_area, strict=True)
        return [_line(box["class_id"], xywh) for box, xywh, is_kept in boxes if is_kept]

    def close(self) -> None:
        """Write data.yaml: the folders of the splits, and the class names."""
        dataset: dict[str, object] = {
            split: f"images/{split}" for split, count in self._num_images.items() if count
        }
        # YOLO requires both keys.
        dataset.setdefault("train", "images/train")
        dataset.setdefault("val", dataset["train"])
        dataset["names"] = self._names
        text = yaml.safe_dump(dataset, sort_keys=False, allow_unicode=True)
        self.context.folder.put("data.yaml", text.encode())


class YoloSegment(Yolo):
    """Writes the masks of YOLO: a polygon for each box, or for each connected part of a class."""

    COLUMNS = ("box_masks", "mask")

    def __init__(self, context: ExportContext) -> None:
        super().__init__(context)
        # Class of the mask → number in YOLO, which has no background.
        names = enumerate(context.classes.get("mask", ()))
        classes = [i for i, name in names if name.strip().lower() != "background"]
        self._number_of = {class_id: number for number, class_id in enumerate(classes)}

    @property
    def _names(self) -> dict[int, str]:
        if "box_masks" in self.context.classes:
            return dict(enumerate(self.context.classes["box_masks"]))
        names = self.context.classes["mask"]
        return {number: names[class_id] for class_id, number in self._number_of.items()}

    def _lines(self, row: Row) -> list[str]:
        if "box_masks" in self.context.classes:
            return self._object_lines(row)
        if row.mask is None:
            return []
        return [
            _polygon_line(number, polygon, row)
            for class_id, number in self._number_of.items()
            if (row.mask == class_id).any()
            for polygon in trace_regions(row.mask == class_id)
        ]

    def _object_lines(self, row: Row) -> list[str]:
        lines = []
        for i, box in enumerate(row.boxes or ()):
            region = row.box_mask(i)
            if box.get("is_crowd"):
                self.warnings[_CROWD] += 1
            elif region is None or not region.any():
                self.warnings[_NO_PIXEL] += 1
            else:
                lines.append(_polygon_line(box["class_id"], trace_object(region), row))
        return lines


def _polygon_line(number: int, polygon: np.ndarray, row: Row) -> str:  # (K, 2) x, y in pixels
    return _line(number, (polygon / row.size_hw[::-1]).reshape(-1).tolist())


def _line(number: int, values: Sequence[float]) -> str:
    return f"{number} " + " ".join(f"{value:.9g}" for value in values) + "\n"
