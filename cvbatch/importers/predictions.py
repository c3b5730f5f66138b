"""Import the result of a prediction as pseudo-labels.

The images are read as in the prediction, chunk by chunk, so a result over Parquet files or tar
archives works like a result over image files. Scores are stored as predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cvbatch.core.errors import SourceError
from cvbatch.core.tasks import CLASS_COLUMNS
from cvbatch.core.types import ChunkRef
from cvbatch.images.orientation import Size
from cvbatch.importers.annotations import AnnotatedBatch, AnnotatedDataset, Annotation, MaskIssue
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.polygons import Outline
from cvbatch.planning import manifest
from cvbatch.results.parts import box_corners
from cvbatch.results.result import Result, Row
from cvbatch.storage.store import Storage

_BATCH_ROWS = 1024  # rows read at once, without masks


class _PseudoLabels:
    """Annotations and masks from the predictions of a result."""

    def __init__(self, storage: Storage, uri: str, min_score: float) -> None:
        self.result = Result(storage, uri, needs_rows=True)
        self.classes = self.result.classes
        is_filled = {*self.classes, *({"box_masks"} & set(self.result.footer.columns))}
        self.columns = tuple(name for name in (*CLASS_COLUMNS, "box_masks") if name in is_filled)
        self._min_score = min_score
        self._chunk = self.result.done[0]  # the chunk of the last batch
        self._mask_rows: Iterator[Row] = iter(())  # rows of the chunk after the last mask
        if not self.classes:
            raise SourceError(
                f"{uri} has none of the columns {', '.join(CLASS_COLUMNS)}; use the result of "
                "another task"
            )
        self.is_single_label = "labels" in self.classes and not self.result.is_multi_label
        self.needs_label = self.is_single_label and set(self.classes) == {"labels"}

    def batches(self, report: ImportReport) -> Iterator[AnnotatedBatch]:
        """Yield the usable images of every chunk with their labels."""
        for ref in self.result.missing:
            num_images = max(1, ref.num_images)  # 0: a tar archive that was not read yet
            report.num_found += num_images
            report.record("annotation_missing", f"chunk {ref.chunk_id}", num_images)
        reader = self.result.reader
        for ref in self.result.done:
            annotations = self._annotations(ref, report)
            items = manifest.read_chunk(self.result.storage, ref).items
            if annotations:
                self._chunk, self._mask_rows = ref, iter(())
                yield AnnotatedBatch(reader.format.select(items, annotations), annotations, reader)

    def read_mask(self, annotation: Annotation, frame_hw: Size) -> np.ndarray | MaskIssue | None:
        """Return the mask of an image of the last batch, (h, w) uint8; see `MaskReader`."""
        row = self._mask_row(annotation.image_id)
        try:
            mask = None if row is None else row.stored_mask
        except SourceError as error:
            return MaskIssue("mask_unreadable", str(error))
        if mask is not None and mask.shape != frame_hw:
            size = f"{mask.shape[1]} x {mask.shape[0]}"
            message = f"{annotation.image_id}: {size}; predict with mask_size: original"
            return MaskIssue("mask_size", message)
        return mask

    def _mask_row(self, image_id: str) -> Row | None:
        """Return the row of an image, or None; rows are streamed, so requests in order are fast."""
        for _ in range(2):  # first the rows after the last mask, then all rows
            for row in self._mask_rows:
                if row.image_id == image_id:
                    return row
            self._mask_rows = self.result.rows(self._chunk, ("mask",))
        return None

    def _annotations(self, ref: ChunkRef, report: ImportReport) -> dict[str, Annotation]:
        columns = [name for name in ("labels", "boxes", "box_masks") if name in self.columns]
        mask_uri = self.result.uri_of(ref) if "mask" in self.classes else ""
        annotations = {}
        for row in self.result.rows(ref, columns, _BATCH_ROWS):
            report.num_found += 1
            confident = row.with_min_score(self._min_score)
            if row.error is not None:
                report.record("failed", f"{row.uri} ({row.image_id})")
            elif self.needs_label and not confident.labels:
                report.record("below_score", f"{row.uri} ({row.image_id})")
            else:
                annotations[row.image_id] = self._annotation(confident, mask_uri)
        return annotations

    def _annotation(self, row: Row, mask_uri: str) -> Annotation:
        boxes = row.boxes or []
        labels = [(label["class_id"], label["score"]) for label in row.labels or ()]
        return Annotation(
            image_id=row.image_id,
            boxes=box_corners(boxes),
            class_id=np.array([box["class_id"] for box in boxes], np.int32),
            score=np.array([box["score"] for box in boxes], np.float32),
            is_crowd=np.zeros(len(boxes), bool),
            labels=labels[:1] if self.is_single_label else labels,
            outlines=[_outline(box.get("mask")) for box in boxes],
            declared_hw=row.size_hw,
            mask_uri=mask_uri,
        )


def _outline(rle: Mapping[str, Any] | None) -> Outline | None:
    return None if rle is None else {"size": tuple(rle["size"]), "counts": rle["counts"]}


def read_predictions(source: str, options: ImportOptions, report: ImportReport) -> AnnotatedDataset:
    """Return the predictions of a result whose score is at least `min_score`.

    Raises:
        SourceError: there is no result, it has no labels, boxes or masks, or its parts belong to
            different jobs.
    """
    labels = _PseudoLabels(options.storage, source, options.min_score)
    columns = labels.columns
    return AnnotatedDataset(
        columns=columns,
        classes=labels.classes,
        is_multi_label=not labels.is_single_label,
        batches=labels.batches,
        read_mask=labels.read_mask if "mask" in columns else None,
        is_upright=True,
    )
