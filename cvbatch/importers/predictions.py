"""A prediction's result as labels: what one model said with some certainty teaches another.

The images are read as the prediction read them, chunk by chunk, so a result over Parquet or tars
serves as one over files does. Scores stay what the model gave.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cvbatch.core.errors import SourceError
from cvbatch.images.masks import decode_png
from cvbatch.images.orientation import Size
from cvbatch.importers.annotations import AnnotatedDataset, Annotation, Batch, MaskFault
from cvbatch.importers.import_report import Report
from cvbatch.importers.options import ImportOptions
from cvbatch.planning import manifest
from cvbatch.results.parts import ANSWERS, Parts, describe, read_rows

_ROWS_AT_ONCE = 1024
_SIDES = ("x_min", "y_min", "x_max", "y_max")


class _Result:
    """A prediction's sink, and what its files say of themselves."""

    def __init__(self, uri: str, min_score: float) -> None:
        self.uri = uri
        self.min_score = min_score
        self._masks_of = ""  # the part whose masks are held
        self._masks: dict[str, bytes | None] = {}
        self.parts = Parts.find(uri)
        if not self.parts.done:
            raise SourceError(
                f"{uri} is no prediction's result: it has no _cvbatch/manifest with part files; "
                "name the sink of a finished `cvbatch predict`"
            )
        self.said = describe(self.parts.uri_of(self.parts.done[0]))
        self.classes = self.said.classes
        if not self.classes:
            raise SourceError(f"{uri} holds neither labels, boxes nor masks")
        self.has_labels_alone = set(self.classes) == {"labels"}
        self.is_single_label = any(
            model["task"] == "localization"
            or (model["task"] == "classification" and not model["options"].get("multi_label"))
            for model in self.said.document["models"]
        )

    def batches(self, report: Report) -> Iterator[Batch]:
        """Yield the images of every chunk that can be used, with their labels."""
        for ref in self.parts.missing:
            num_images = max(1, ref.num_images)  # of a tar nobody knows
            report.num_found += num_images
            report.note("annotation_missing", f"chunk {ref.chunk_id}", num_images)
        for ref in self.parts.done:
            examples = self._examples(self.parts.uri_of(ref), report)
            if examples:
                reader = self.parts.reader
                items = reader.format.select(manifest.read_chunk(ref).items, examples)
                yield Batch(items, examples, reader)

    def read_mask(self, example: Annotation, frame_hw: Size) -> np.ndarray | MaskFault | None:
        """Return the mask as class ids, (h, w) uint8; see `MaskReader`."""
        if self._masks_of != example.mask_at:  # the images of a part come one after the other
            rows = read_rows(example.mask_at, ("image_id", "mask"), _ROWS_AT_ONCE)
            self._masks = {row["image_id"]: (row["mask"] or {}).get("bytes") for row in rows}
            self._masks_of = example.mask_at
        data = self._masks.get(example.image_id)
        if data is None:
            return None
        try:
            mask = decode_png(data)
        except ValueError as error:
            return MaskFault("mask_unreadable", f"{example.image_id}: {error}")
        if mask.shape != frame_hw:
            height, width = mask.shape
            told = f"{example.image_id}: {width} x {height}; predict with mask_size: original"
            return MaskFault("mask_size", told)
        return mask

    def _examples(self, part_uri: str, report: Report) -> dict[str, Annotation]:
        document = describe(part_uri).document
        if document["fingerprint"] != self.said.document["fingerprint"]:
            raise SourceError(f"{part_uri} is of another job than the rest of {self.uri}")
        wanted = [name for name in ("labels", "boxes") if name in self.classes]
        columns = ("image_id", "uri", "status", "width", "height", *wanted)
        examples = {}
        for row in read_rows(part_uri, columns, _ROWS_AT_ONCE):
            report.num_found += 1
            if row["status"] != "ok":
                report.note("failed", f"{row['uri']} ({row['image_id']})")
                continue
            labels = self._labels(row)
            if self.has_labels_alone and self.is_single_label and not labels:
                report.note("below_score", f"{row['uri']} ({row['image_id']})")
                continue
            examples[row["image_id"]] = self._example(row, labels, part_uri)
        return examples

    def _labels(self, row: dict[str, Any]) -> list[tuple[int, float]]:
        """Return the labels that are certain enough, of classes that exclude each other one."""
        said = row.get("labels") or []
        certain = [
            (one["class_id"], one["score"]) for one in said if one["score"] >= self.min_score
        ]
        return certain[:1] if self.is_single_label else certain

    def _example(
        self, row: dict[str, Any], labels: list[tuple[int, float]], part_uri: str
    ) -> Annotation:
        boxes = [box for box in row.get("boxes") or [] if box["score"] >= self.min_score]
        corners = [[box[side] for side in _SIDES] for box in boxes]
        return Annotation(
            image_id=row["image_id"],
            boxes=np.array(corners, np.float64).reshape(-1, 4),
            class_id=np.array([box["class_id"] for box in boxes], np.int32),
            score=np.array([box["score"] for box in boxes], np.float32),
            is_crowd=np.zeros(len(boxes), bool),
            labels=labels,
            declared_hw=(row["height"], row["width"]),
            mask_at=part_uri if "mask" in self.classes else "",
        )


def read_predictions(source: str, options: ImportOptions, report: Report) -> AnnotatedDataset:
    """Return what a prediction's sink says, labels and boxes of `min_score` or more.

    Raises:
        SourceError: it is none, or its files are not of one job.
    """
    result = _Result(source, options.min_score)
    columns = tuple(name for name in ANSWERS if name in result.classes)
    return AnnotatedDataset(
        columns=columns,
        classes=result.classes,
        is_multi_label=not result.is_single_label,
        batches=result.batches,
        read_mask=result.read_mask if "mask" in columns else None,
        is_upright=True,
    )
