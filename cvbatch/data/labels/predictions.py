"""A prediction's result as labels: what one model said with some certainty teaches another.

The images are read as the prediction read them, chunk by chunk, so a result over Parquet or tars
serves as one over files does. Scores stay what the model gave.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cvbatch.arrays.masks import decode_png
from cvbatch.config import TASK_COLUMNS
from cvbatch.data import manifest, sink, store
from cvbatch.data.labels.options import ImportOptions
from cvbatch.data.labels.pictures import Size
from cvbatch.data.labels.report import Report
from cvbatch.data.labels.truth import Batch, Example, MaskFault, Truth
from cvbatch.errors import AccessDeniedError, NotFoundError, SourceError
from cvbatch.types import ChunkRef

_COLUMNS = ("labels", "boxes", "mask")
_SIDES = ("x_min", "y_min", "x_max", "y_max")


class _Result:
    """A prediction's sink, and what its files say of themselves."""

    def __init__(self, uri: str, min_score: float) -> None:
        self.uri = uri
        self.min_score = min_score
        self._masks_of = ""  # the part whose masks are held
        self._masks: dict[str, bytes | None] = {}
        try:
            known = manifest.read(manifest.generations(uri))
            names = store.list_names(uri)
        except (NotFoundError, AccessDeniedError) as error:
            raise SourceError(f"the source cannot be read: {error}") from None
        self.reading: dict[str, str] = known.reading or {}
        self.chunks = known.chunks
        self.done = [ref for ref in known.chunks if sink.part_name(ref.chunk_id) in names]
        if not self.done:
            raise SourceError(
                f"{uri} is no prediction's result: it has no _cvbatch/manifest with part files; "
                "name the sink of a finished `cvbatch predict`"
            )
        self.metadata, columns = _describe(self.part_uri(self.done[0]))
        self.classes = _classes(self.metadata, columns, uri)
        self.has_labels_alone = set(self.classes) == {"labels"}
        self.is_single_label = any(
            model["task"] == "localization"
            or (model["task"] == "classification" and not model["options"].get("multi_label"))
            for model in self.metadata["models"]
        )

    def part_uri(self, ref: ChunkRef) -> str:
        """Return where a chunk's rows are."""
        return store.join(self.uri, sink.part_name(ref.chunk_id))

    def batches(self, report: Report) -> Iterator[Batch]:
        """Yield the images of every chunk that can be used, with their labels."""
        done = {ref.chunk_id for ref in self.done}
        for ref in self.chunks:
            if ref.chunk_id not in done:
                num_images = max(1, ref.num_images)  # of a tar nobody knows
                report.num_found += num_images
                report.note("annotation_missing", f"chunk {ref.chunk_id}", num_images)
                continue
            examples = self._examples(self.part_uri(ref), report)
            items = manifest.read_chunk(ref).items
            if self.reading["format"] == "images":
                items = tuple(item for item in items if item.image_id in examples)
            if examples:
                column = self.reading.get("image_column", "image")
                yield Batch(items, examples, self.reading["format"], column)

    def read_mask(self, example: Example, frame_hw: Size) -> np.ndarray | MaskFault | None:
        """Return the mask as class ids, (h, w) uint8; see `MaskReader`."""
        if self._masks_of != example.mask_at:  # the images of a part come one after the other
            rows = _read_part(example.mask_at, ("image_id", "mask"))
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

    def _examples(self, part_uri: str, report: Report) -> dict[str, Example]:
        metadata, _ = _describe(part_uri)
        if metadata["fingerprint"] != self.metadata["fingerprint"]:
            raise SourceError(f"{part_uri} is of another job than the rest of {self.uri}")
        wanted = [name for name in ("labels", "boxes") if name in self.classes]
        rows = _read_part(part_uri, ("image_id", "uri", "status", "width", "height", *wanted))
        examples = {}
        for row in rows:
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
    ) -> Example:
        boxes = [box for box in row.get("boxes") or [] if box["score"] >= self.min_score]
        corners = [[box[side] for side in _SIDES] for box in boxes]
        return Example(
            image_id=row["image_id"],
            boxes=np.array(corners, np.float64).reshape(-1, 4),
            class_id=np.array([box["class_id"] for box in boxes], np.int32),
            score=np.array([box["score"] for box in boxes], np.float32),
            is_crowd=np.zeros(len(boxes), bool),
            labels=labels,
            declared_hw=(row["height"], row["width"]),
            mask_at=part_uri if "mask" in self.classes else "",
        )


def read_predictions(source: str, options: ImportOptions, report: Report) -> Truth:
    """Return what a prediction's sink says, labels and boxes of `min_score` or more.

    Raises:
        SourceError: it is none, or its files are not of one job.
    """
    result = _Result(source, options.min_score)
    columns = tuple(name for name in _COLUMNS if name in result.classes)
    return Truth(
        columns=columns,
        classes=result.classes,
        is_multi_label=not result.is_single_label,
        batches=result.batches,
        read_mask=result.read_mask if "mask" in columns else None,
        is_upright=True,
    )


def _classes(metadata: dict[str, Any], columns: list[str], uri: str) -> dict[str, tuple[str, ...]]:
    """Return the class table of each column that a model of the job filled."""
    classes = {
        column: tuple(model["classes"])
        for model in metadata["models"]
        for column in TASK_COLUMNS[model["task"]]
        if column in _COLUMNS and column in columns
    }
    if not classes:
        raise SourceError(f"{uri} holds neither labels, boxes nor masks")
    return classes


def _describe(uri: str) -> tuple[dict[str, Any], list[str]]:
    """Return what a part says of its job, and the names of its columns."""
    try:
        with store.open_input(uri) as file:
            footer = pq.ParquetFile(file)
            metadata = json.loads(footer.metadata.metadata[b"cvbatch"])
            return {key: metadata[key] for key in ("fingerprint", "models")}, (
                footer.schema_arrow.names
            )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{uri} is no part of a prediction's result ({error})") from None


def _read_part(uri: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        with store.open_input(uri) as file:
            rows: list[dict[str, Any]] = pq.ParquetFile(file).read(list(columns)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{uri} cannot be read as Parquet ({error})") from None
    return rows
