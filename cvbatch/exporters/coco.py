"""A result as COCO: boxes in instances_*.json, masks class by class in stuff_*.json.

Boxes are (x, y, width, height) in pixels, exactly those of the result; annotations carry the score,
which the format knows in results_*.json alone. A mask says classes, not objects: one annotation for
each class in an image, as run lengths; a class called background is the absence of one.
Category ids are class ids + 1. (cocodataset.org/#format-data, #format-results)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cvbatch.exporters.base import SPLIT_NAMES, ExportContext, Exporter, ImageTarget
from cvbatch.exporters.folder import ExportFolder
from cvbatch.exporters.json_stream import ItemSpool, to_json, write_document
from cvbatch.images.rle import compress_rle, encode_rle
from cvbatch.results.row import Row


class _Split:
    """The documents of one split."""

    def __init__(self, folder: ExportFolder) -> None:
        self.images = ItemSpool(folder)
        self.annotations = {"boxes": ItemSpool(folder), "mask": ItemSpool(folder)}
        self.results = ItemSpool(folder)


class Coco(Exporter):
    """Writes COCO."""

    COLUMNS = ("boxes", "mask")
    TOPS = ("annotations", "images")

    def __init__(self, plan: ExportContext) -> None:
        super().__init__(plan)
        self._splits = {split: _Split(plan.folder) for split in SPLIT_NAMES.values()}
        self._num_images = 0
        self._background = {
            i for i, name in enumerate(plan.classes.get("mask", ())) if _is_background(name)
        }

    def image_file(self, placed: ImageTarget) -> str:
        """Return where an image's file goes."""
        return f"images/{placed.split}/{placed.name}"

    def add(self, row: Row, placed: ImageTarget) -> None:
        """Take an image."""
        split = self._splits[placed.split]
        self._num_images += 1
        key = self._num_images
        size = {"width": row.width, "height": row.height}
        split.images.add(to_json({"id": key, "file_name": placed.name, **size, "uri": row.uri}))
        for result in _boxes(row, key):
            split.results.add(to_json(result))
            self._annotate(split, "boxes", {**result, "segmentation": []})
        if row.mask is not None:
            for region in _regions(row.mask, self._background):
                self._annotate(split, "mask", {"image_id": key, **region})

    def _annotate(self, split: _Split, column: str, said: dict[str, Any]) -> None:
        items = split.annotations[column]
        _, _, width, height = said["bbox"]
        area = said.get("area", width * height)
        items.add(to_json({"id": items.count + 1, **said, "area": area, "iscrowd": 0}))

    def close(self) -> None:
        """Write the documents: of every split that has an image; of train at least."""
        for name, split in self._splits.items():
            if not split.images.count and (name != "train" or self._num_images):
                continue
            for column, kind in (("boxes", "instances"), ("mask", "stuff")):
                if column in self.context.classes:
                    self._put(f"annotations/{kind}_{name}.json", column, split)
            if "boxes" in self.context.classes:
                pieces = ("[\n", split.results, "\n]\n")
                write_document(self.context.folder, f"annotations/results_{name}.json", pieces)

    def _put(self, name: str, column: str, split: _Split) -> None:
        background = self._background if column == "mask" else set()
        categories = [
            {"id": i + 1, "name": label}
            for i, label in enumerate(self.context.classes[column])
            if i not in background
        ]
        write_document(
            self.context.folder,
            name,
            (
                '{"info": {"description": "a prediction of cvbatch"},\n"categories": ',
                to_json(categories),
                ',\n"images": [\n',
                split.images,
                '\n],\n"annotations": [\n',
                split.annotations[column],
                "\n]}\n",
            ),
        )


def _is_background(name: str) -> bool:
    return name.strip().lower() == "background"


def _boxes(row: Row, key: int) -> Iterator[dict[str, Any]]:
    for box in row.boxes or ():
        left, top = box["x_min"], box["y_min"]
        bbox = [left, top, box["x_max"] - left, box["y_max"] - top]
        category_id = box["class_id"] + 1
        yield {"image_id": key, "category_id": category_id, "bbox": bbox, "score": box["score"]}


def _regions(
    mask: np.ndarray,  # (h, w) uint8
    background: set[int],
) -> Iterator[dict[str, Any]]:
    """Yield each class of a mask that is something, with the box round it."""
    for class_id in np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256)[:-1]).tolist():
        if class_id in background:
            continue
        region = mask == class_id
        rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        yield {
            "category_id": class_id + 1,
            "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
            "segmentation": {"size": list(mask.shape), "counts": compress_rle(encode_rle(region))},
            "area": int(region.sum()),
        }
