"""Write YOLO: a text file for each image, a line for each box, coordinates relative to its size.

Boxes are clipped to the image, because tools reject an image with a coordinate above 1; boxes
without an area inside the image are left out and counted. YOLO stores neither scores nor masks.

Source: https://docs.ultralytics.com/datasets/detect
"""

from __future__ import annotations

import numpy as np
import yaml

from cvbatch.exporters.base import SPLIT_NAMES, ExportContext, Exporter, ImageTarget
from cvbatch.results.parts import box_corners
from cvbatch.results.row import Row

_NO_AREA = "boxes without an area in their image, left out"


class Yolo(Exporter):
    """Writes YOLO."""

    COLUMNS = ("boxes",)
    OUTPUT_NAMES = ("images", "labels", "data.yaml")
    IS_FLAT = True  # some tools do not search subfolders

    def __init__(self, context: ExportContext) -> None:
        super().__init__(context)
        self._num_images = dict.fromkeys(SPLIT_NAMES.values(), 0)

    def image_file(self, target: ImageTarget) -> str:
        """Return the path of an image file below the export's folder."""
        return f"images/{target.split}/{target.name}"

    def add(self, row: Row, target: ImageTarget) -> None:
        """Write the text file of an image; it is empty for an image without boxes."""
        self._num_images[target.split] += 1
        size, xyxy = np.array(row.size_hw[::-1]), box_corners(row.boxes)
        first, last = (np.clip(xyxy[:, i : i + 2], 0, size) for i in (0, 2))
        has_area = (last > first).all(axis=1)
        if not has_area.all():
            self.warnings[_NO_AREA] += int((~has_area).sum())
        relative = np.concatenate([(first + last) / 2 / size, (last - first) / size], axis=1)
        boxes = zip(row.boxes or (), relative.tolist(), has_area, strict=True)
        lines = [
            f"{box['class_id']} " + " ".join(f"{value:.9g}" for value in xywh) + "\n"
            for box, xywh, is_kept in boxes
            if is_kept
        ]
        name = f"labels/{target.split}/{target.stem}.txt"
        self.context.folder.put(name, "".join(lines).encode())

    def close(self) -> None:
        """Write data.yaml: the folders of the splits, and the class names."""
        dataset: dict[str, object] = {
            split: f"images/{split}" for split, count in self._num_images.items() if count
        }
        # YOLO requires both keys.
        dataset.setdefault("train", "images/train")
        dataset.setdefault("val", dataset["train"])
        dataset["names"] = dict(enumerate(self.context.classes["boxes"]))
        text = yaml.safe_dump(dataset, sort_keys=False, allow_unicode=True)
        self.context.folder.put("data.yaml", text.encode())
