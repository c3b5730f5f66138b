"""Write a FiftyOne dataset: detections, classifications and masks.

`detections.json` is a FiftyOneImageDetectionDataset, `classifications.json` a
FiftyOneImageClassificationDataset and `masks` an ImageSegmentationDirectory, all for the images of
`data`. If images are not copied, `data.json` maps their names to their URIs.

Source: https://docs.voxel51.com/user_guide/dataset_creation/datasets.html
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
    """Writes a dataset that FiftyOne imports."""

    COLUMNS = ("labels", "boxes", "mask")
    OUTPUT_NAMES = ("data", "data.json", "masks", "mask_targets.json", *_DOCUMENTS.values())

    def __init__(self, context: ExportContext) -> None:
        super().__init__(context)
        self._items = {
            column: ItemSpool(context.folder) for column in _DOCUMENTS if column in context.classes
        }
        self._image_uris = ItemSpool(context.folder)

    def image_file(self, target: ImageTarget) -> str:
        """Return the path of an image file below the export's folder."""
        return f"data/{target.name}"

    def add(self, row: Row, target: ImageTarget) -> None:
        """Write the mask of an image, and add its boxes and labels to the documents."""
        convert = {"boxes": self._detections, "labels": self._labels}
        for column, items in self._items.items():
            items.add(f"{to_json(target.stem)}: {to_json(convert[column](row))}")
        if row.mask is not None:
            self.context.folder.put(f"masks/{target.stem}.png", encode_png(row.mask))
        if not self.context.has_images and not self.context.is_inside:
            # FiftyOne removes one suffix from the name, so a stem with a dot needs a suffix.
            name = f"{target.stem}{target.suffix or '.bin'}"
            self._image_uris.add(f"{to_json(name)}: {to_json(row.uri)}")

    def _detections(self, row: Row) -> list[dict[str, Any]]:
        """Return the boxes as (x, y, width, height) relative to the image size."""
        size, xyxy = np.array(row.size_hw[::-1]), box_corners(row.boxes)
        xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        relative = xywh / np.concatenate([size, size])
        names = self.context.classes["boxes"]
        return [
            {"label": names[box["class_id"]], "bounding_box": sides, "confidence": box["score"]}
            for box, sides in zip(row.boxes or (), relative.tolist(), strict=True)
        ]

    def _labels(self, row: Row) -> Any:
        """Return all labels of a multi-label result; otherwise the best label or None."""
        names = self.context.classes["labels"]
        labels = [
            {"label": names[label["class_id"]], "confidence": label["score"]}
            for label in row.labels or ()
        ]
        if self.context.is_multi_label:
            return labels
        return labels[0] if labels else None

    def close(self) -> None:
        """Write the documents."""
        folder, classes = self.context.folder, self.context.classes
        for column, items in self._items.items():
            head = f'{{"classes": {to_json(list(classes[column]))},\n"labels": {{\n'
            write_document(folder, _DOCUMENTS[column], (head, items, "\n}}\n"))
        if "mask" in classes:
            targets = {str(i): name for i, name in enumerate(classes["mask"])}
            folder.put("mask_targets.json", to_json(targets).encode())
        if self._image_uris.count:
            write_document(folder, "data.json", ("{\n", self._image_uris, "\n}\n"))
