"""Use a prediction's result as labels (pseudo-labels), from a minimum score on.

The images are read as the prediction read them, chunk by chunk, so a result over Parquet files or
tars works like one over image files. Scores are stored as predicted.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cvbatch.core.errors import SourceError
from cvbatch.core.tasks import CLASS_COLUMNS
from cvbatch.core.types import ChunkRef
from cvbatch.images.orientation import Size
from cvbatch.importers.annotations import AnnotatedDataset, Annotation, Batch, MaskFault
from cvbatch.importers.import_report import Report
from cvbatch.importers.options import ImportOptions
from cvbatch.planning import manifest
from cvbatch.results.parts import box_corners
from cvbatch.results.result import Result, Row
from cvbatch.storage.store import Storage

_BATCH_ROWS = 1024  # without masks


class _PseudoLabels:
    """The predictions of a result as annotations, and their masks."""

    def __init__(self, storage: Storage, uri: str, min_score: float) -> None:
        self.result = Result(storage, uri, needs_rows=True)
        self.classes = self.result.classes
        self._min_score = min_score
        self._chunk = self.result.done[0]  # that is read
        self._masks: Iterator[Row] = iter(())  # its rows after the last mask
        if not self.classes:
            raise SourceError(f"{uri} has none of the columns {', '.join(CLASS_COLUMNS)}")
        self.is_single_label = "labels" in self.classes and not self.result.is_multi_label
        self.needs_label = self.is_single_label and set(self.classes) == {"labels"}

    def batches(self, report: Report) -> Iterator[Batch]:
        """Yield the usable images of every chunk with their labels."""
        for ref in self.result.missing:
            num_images = max(1, ref.num_images)  # a tar is counted only when it is read
            report.num_found += num_images
            report.note("annotation_missing", f"chunk {ref.chunk_id}", num_images)
        reader = self.result.reader
        for ref in self.result.done:
            examples = self._examples(ref, report)
            items = manifest.read_chunk(self.result.storage, ref).items
            if examples:
                self._chunk, self._masks = ref, iter(())
                yield Batch(reader.format.select(items, examples), examples, reader)

    def read_mask(self, example: Annotation, frame_hw: Size) -> np.ndarray | MaskFault | None:
        """Return the mask of an image of the last batch, (h, w) uint8; see `MaskReader`."""
        row = self._mask_row(example.image_id)
        try:
            mask = None if row is None else row.stored_mask
        except SourceError as error:
            return MaskFault("mask_unreadable", str(error))
        if mask is not None and mask.shape != frame_hw:
            size = f"{mask.shape[1]} x {mask.shape[0]}"
            message = f"{example.image_id}: {size}; predict with mask_size: original"
            return MaskFault("mask_size", message)
        return mask

    def _mask_row(self, image_id: str) -> Row | None:
        """Return the row of an image; few are in memory if images are in the rows' order."""
        for _ in range(2):  # from the last mask on, then from the first row
            for row in self._masks:
                if row.image_id == image_id:
                    return row
            self._masks = self.result.rows(self._chunk, ("mask",))
        return None

    def _examples(self, ref: ChunkRef, report: Report) -> dict[str, Annotation]:
        columns = [name for name in ("labels", "boxes") if name in self.classes]
        mask_at = self.result.uri_of(ref) if "mask" in self.classes else ""
        examples = {}
        for row in self.result.rows(ref, columns, _BATCH_ROWS):
            report.num_found += 1
            confident = row.with_min_score(self._min_score)
            if row.error is not None:
                report.note("failed", f"{row.uri} ({row.image_id})")
            elif self.needs_label and not confident.labels:
                report.note("below_score", f"{row.uri} ({row.image_id})")
            else:
                examples[row.image_id] = self._annotation(confident, mask_at)
        return examples

    def _annotation(self, row: Row, mask_at: str) -> Annotation:
        boxes = row.boxes or []
        labels = [(one["class_id"], one["score"]) for one in row.labels or ()]
        return Annotation(
            image_id=row.image_id,
            boxes=box_corners(boxes),
            class_id=np.array([box["class_id"] for box in boxes], np.int32),
            score=np.array([box["score"] for box in boxes], np.float32),
            is_crowd=np.zeros(len(boxes), bool),
            labels=labels[:1] if self.is_single_label else labels,
            declared_hw=row.size_hw,
            mask_at=mask_at,
        )


def read_predictions(source: str, options: ImportOptions, report: Report) -> AnnotatedDataset:
    """Return the predictions of a result as labels, those of `min_score` or more.

    Raises:
        SourceError: there is no result, it has no labels, boxes or masks, or its parts are not of
            one job.
    """
    labels = _PseudoLabels(options.storage, source, options.min_score)
    columns = tuple(name for name in CLASS_COLUMNS if name in labels.classes)
    return AnnotatedDataset(
        columns=columns,
        classes=labels.classes,
        is_multi_label=not labels.is_single_label,
        batches=labels.batches,
        read_mask=labels.read_mask if "mask" in columns else None,
        is_upright=True,
    )
