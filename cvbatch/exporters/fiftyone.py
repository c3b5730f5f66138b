"""A result as FiftyOne reads it: detections, classifications and masks as fields of one data set.

`detections.json` is a FiftyOneImageDetectionDataset, `classifications.json` a
FiftyOneImageClassificationDataset, `masks` an ImageSegmentationDirectory, all over the images of
`data`; `data.json` says where images lie that were not copied.
(docs.voxel51.com/user_guide/dataset_creation/datasets.html)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cvbatch.exporters.base import ExportContext, Exporter, ImageTarget
from cvbatch.exporters.json_stream import ItemSpool, to_json, write_document
from cvbatch.images.masks import encode_png
from cvbatch.results.parts import box_corners
from cvbatch.results.row import Row

_DOCUMENTS = {"boxes": "detections.json", "labels": "classifications.json"}


class FiftyOne(Exporter):
    """Writes what FiftyOne imports."""

    COLUMNS = ("labels", "boxes", "mask")
    TOPS = ("data", "data.json", "masks", "mask_targets.json", *_DOCUMENTS.values())

    def __init__(self, plan: ExportContext) -> None:
        super().__init__(plan)
        self._items = {
            column: ItemSpool(plan.folder) for column in _DOCUMENTS if column in plan.classes
        }
        self._places = ItemSpool(plan.folder)

    def image_file(self, placed: ImageTarget) -> str:
        """Return where an image's file goes."""
        return f"data/{placed.name}"

    def add(self, row: Row, placed: ImageTarget) -> None:
        """Take an image."""
        said = {"boxes": self._detections, "labels": self._labels}
        for column, items in self._items.items():
            items.add(f"{to_json(placed.stem)}: {to_json(said[column](row))}")
        if row.mask is not None:
            self.context.folder.put(f"masks/{placed.stem}.png", encode_png(row.mask))
        if not self.context.has_images and not self.context.is_inside:
            # FiftyOne takes the suffix off, and must not find another one
            name = f"{placed.stem}{placed.suffix or '.bin'}"
            self._places.add(f"{to_json(name)}: {to_json(row.uri)}")

    def _detections(self, row: Row) -> list[dict[str, Any]]:
        size, xyxy = np.array(row.size_hw[::-1]), box_corners(row.boxes)
        boxes = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        parts = boxes / np.concatenate([size, size])
        names = self.context.classes["boxes"]
        return [
            {"label": names[box["class_id"]], "bounding_box": sides, "confidence": box["score"]}
            for box, sides in zip(row.boxes or (), parts.tolist(), strict=True)
        ]

    def _labels(self, row: Row) -> Any:
        names = self.context.classes["labels"]
        said = [
            {"label": names[one["class_id"]], "confidence": one["score"]}
            for one in row.labels or ()
        ]
        if self.context.is_multi_label:
            return said
        return said[0] if said else None

    def close(self) -> None:
        """Write the documents."""
        folder, classes = self.context.folder, self.context.classes
        for column, items in self._items.items():
            said = f'{{"classes": {to_json(list(classes[column]))},\n"labels": {{\n'
            write_document(folder, _DOCUMENTS[column], (said, items, "\n}}\n"))
        if "mask" in classes:
            targets = {str(i): name for i, name in enumerate(classes["mask"])}
            folder.put("mask_targets.json", to_json(targets).encode())
        if self._places.count:
            write_document(folder, "data.json", ("{\n", self._places, "\n}\n"))
