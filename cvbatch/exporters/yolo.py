"""A result as YOLO: a text file an image, a line a box, its sides as parts of the image's.

Boxes are cut off at the image's edge, since tools throw away an image with a number over 1, and
those with nothing left are counted. Scores and masks have no place in it.
(docs.ultralytics.com/datasets/detect)
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
    TOPS = ("images", "labels", "data.yaml")
    IS_FLAT = True  # not all tools look into folders

    def __init__(self, plan: ExportContext) -> None:
        super().__init__(plan)
        self._num_images = dict.fromkeys(SPLIT_NAMES.values(), 0)

    def image_file(self, placed: ImageTarget) -> str:
        """Return where an image's file goes."""
        return f"images/{placed.split}/{placed.name}"

    def add(self, row: Row, placed: ImageTarget) -> None:
        """Take an image; one without a box has an empty file."""
        self._num_images[placed.split] += 1
        size, xyxy = np.array(row.size_hw[::-1]), box_corners(row.boxes)
        first, last = (np.clip(xyxy[:, i : i + 2], 0, size) for i in (0, 2))
        is_there = (last > first).all(axis=1)
        if not is_there.all():
            self.warnings[_NO_AREA] += int((~is_there).sum())
        parts = np.concatenate([(first + last) / 2 / size, (last - first) / size], axis=1)
        lines = [
            f"{box['class_id']} " + " ".join(f"{part:.9g}" for part in sides) + "\n"
            for box, sides, has_area in zip(row.boxes or (), parts.tolist(), is_there, strict=True)
            if has_area
        ]
        name = f"labels/{placed.split}/{placed.stem}.txt"
        self.context.folder.put(name, "".join(lines).encode())

    def close(self) -> None:
        """Write what a tool reads first: where the splits are, and the classes."""
        said: dict[str, object] = {
            split: f"images/{split}" for split, count in self._num_images.items() if count
        }
        # both must be said
        said.setdefault("train", "images/train")
        said.setdefault("val", said["train"])
        said["names"] = dict(enumerate(self.context.classes["boxes"]))
        text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True)
        self.context.folder.put("data.yaml", text.encode())
