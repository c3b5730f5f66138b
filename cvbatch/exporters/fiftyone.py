"""A result as FiftyOne reads it: detections, classifications and masks as fields of one data set.

`detections.json` is a FiftyOneImageDetectionDataset, `classifications.json` a
FiftyOneImageClassificationDataset, `masks` an ImageSegmentationDirectory, all over the images of
`data`; `data.json` says where images lie that were not copied.
(docs.voxel51.com/user_guide/dataset_creation/datasets.html)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cvbatch.exporters.base import Format, Placed, Plan
from cvbatch.exporters.json_stream import Items, plain, put_document
from cvbatch.images.masks import encode_png
from cvbatch.results.parts import box_corners
from cvbatch.results.row import Row

_DOCUMENTS = {"boxes": "detections.json", "labels": "classifications.json"}


class FiftyOne(Format):
    """Writes what FiftyOne imports."""

    COLUMNS = ("labels", "boxes", "mask")
    TOPS = ("data", "data.json", "masks", "mask_targets.json", *_DOCUMENTS.values())

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._items = {
            column: Items(plan.folder) for column in _DOCUMENTS if column in plan.classes
        }
        self._places = Items(plan.folder)

    def image_file(self, placed: Placed) -> str:
        """Return where an image's file goes."""
        return f"data/{placed.name}"

    def add(self, row: Row, placed: Placed) -> None:
        """Take an image."""
        said = {"boxes": self._detections, "labels": self._labels}
        for column, items in self._items.items():
            items.add(f"{plain(placed.stem)}: {plain(said[column](row))}")
        if row.mask is not None:
            self.plan.folder.put(f"masks/{placed.stem}.png", encode_png(row.mask))
        if not self.plan.has_images and not self.plan.is_inside:
            # FiftyOne takes the suffix off, and must not find another one
            name = f"{placed.stem}{placed.suffix or '.bin'}"
            self._places.add(f"{plain(name)}: {plain(row.uri)}")

    def _detections(self, row: Row) -> list[dict[str, Any]]:
        size, xyxy = np.array(row.size_hw[::-1]), box_corners(row.boxes)
        boxes = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        parts = boxes / np.concatenate([size, size])
        names = self.plan.classes["boxes"]
        return [
            {"label": names[box["class_id"]], "bounding_box": sides, "confidence": box["score"]}
            for box, sides in zip(row.boxes or (), parts.tolist(), strict=True)
        ]

    def _labels(self, row: Row) -> Any:
        names = self.plan.classes["labels"]
        said = [
            {"label": names[one["class_id"]], "confidence": one["score"]}
            for one in row.labels or ()
        ]
        if self.plan.is_multi_label:
            return said
        return said[0] if said else None

    def close(self) -> None:
        """Write the documents."""
        folder, classes = self.plan.folder, self.plan.classes
        for column, items in self._items.items():
            said = f'{{"classes": {plain(list(classes[column]))},\n"labels": {{\n'
            put_document(folder, _DOCUMENTS[column], (said, items, "\n}}\n"))
        if "mask" in classes:
            targets = {str(i): name for i, name in enumerate(classes["mask"])}
            folder.put("mask_targets.json", plain(targets).encode())
        if self._places.count:
            put_document(folder, "data.json", ("{\n", self._places, "\n}\n"))
