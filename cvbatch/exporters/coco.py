"""Write COCO: boxes in instances_*.json and results_*.json, masks per class in stuff_*.json.

Boxes are (x, y, width, height) in pixels, with the exact values of the result; the mask of a box
is its segmentation. Annotations contain the score, which COCO defines only for results_*.json. A
mask of the image has classes, not objects: it gives one run-length encoded annotation for each
class of an image, without a class named "background". Category ids are class ids + 1. Labels keep
the area and the crowd of their boxes, and no score.

Source: https://cocodataset.org/#format-data, https://cocodataset.org/#format-results
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import cv2
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

    COLUMNS = ("boxes", "box_masks", "mask")
    OUTPUT_NAMES = ("annotations", "images")

    def __init__(self, context: ExportContext) -> None:
        super().__init__(context)
        self._splits = {split: _Split(context.folder) for split in SPLIT_NAMES.values()}
        self._num_images = 0
        self._background = {
            i for i, name in enumerate(context.classes.get("mask", ())) if _is_background(name)
        }

    @property
    def _description(self) -> str:
        return "labels from cvbatch" if self.context.is_truth else "a prediction of cvbatch"

    def image_file(self, target: ImageTarget) -> str:
        """Return the path of an image file below the export's folder."""
        return f"images/{target.split}/{target.name}"

    def add(self, row: Row, target: ImageTarget) -> None:
        """Add an image to the documents of its split."""
        split = self._splits[target.split]
        self._num_images += 1
        image_id = self._num_images
        size = {"width": row.width, "height": row.height}
        image = {"id": image_id, "file_name": target.name, **size, "uri": row.uri}
        split.images.add(to_json(image))
        results = zip(row.boxes or (), _boxes(row, image_id), strict=True)
        for number, (box, result) in enumerate(results):
            split.results.add(to_json(result))
            truth = {key: value for key, value in result.items() if key != "score"}
            annotation = truth if self.context.is_truth else result
            more = {**_mask_area(row, number), **_label_values(box)}
            self._annotate(split, "boxes", {"segmentation": [], **annotation, **more})
        if row.mask is not None:
            for region in _regions(row.mask, self._background):
                self._annotate(split, "mask", {"image_id": image_id, **region})

    def _annotate(self, split: _Split, column: str, annotation: dict[str, Any]) -> None:
        items = split.annotations[column]
        _, _, width, height = annotation["bbox"]
        defaults = {"id": items.count + 1, "area": width * height, "iscrowd": 0}
        items.add(to_json({**defaults, **annotation}))

    def close(self) -> None:
        """Write the documents of every split that has an image; without images those of train."""
        for name, split in self._splits.items():
            if not split.images.count and (name != "train" or self._num_images):
                continue
            for column, kind in (("boxes", "instances"), ("mask", "stuff")):
                if column in self.context.classes:
                    self._write(f"annotations/{kind}_{name}.json", column, split)
            if "boxes" in self.context.classes and not self.context.is_truth:
                content = ("[\n", split.results, "\n]\n")
                write_document(self.context.folder, f"annotations/results_{name}.json", content)

    def _write(self, name: str, column: str, split: _Split) -> None:
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
                f'{{"info": {{"description": "{self._description}"}},\n"categories": ',
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


def _label_values(box: Mapping[str, Any]) -> dict[str, Any]:
    """Return the area and the crowd of a labelled box, if it has them."""
    values = {"area": box.get("area"), "iscrowd": int(box.get("is_crowd") or 0)}
    return {key: value for key, value in values.items() if value is not None}


def _mask_area(row: Row, number: int) -> dict[str, Any]:
    """Return the area of the mask of a box, if it has one."""
    runs = row.box_mask_runs(number)
    return {} if runs is None else {"area": int(runs[1::2].sum())}


def _boxes(row: Row, image_id: int) -> Iterator[dict[str, Any]]:
    """Yield the boxes of an image as COCO results."""
    for box in row.boxes or ():
        left, top = box["x_min"], box["y_min"]
        bbox = [left, top, box["x_max"] - left, box["y_max"] - top]
        category_id = box["class_id"] + 1
        yield {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": bbox,
            "score": box["score"],
            **({"segmentation": box["mask"]} if box.get("mask") else {}),
        }


def _regions(
    mask: np.ndarray,  # (h, w) uint8
    background: set[int],
) -> Iterator[dict[str, Any]]:
    """Yield each class of a mask with its bounding box; not background and void."""
    for class_id in np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256)[:-1]).tolist():
        if class_id in background:
            continue
        region = mask == class_id
        yield {
            "category_id": class_id + 1,
            "bbox": list(cv2.boundingRect(region.astype(np.uint8))),
            "segmentation": {"size": list(mask.shape), "counts": compress_rle(encode_rle(region))},
            "area": int(region.sum()),
        }
