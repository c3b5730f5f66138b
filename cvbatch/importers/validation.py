"""Validate images and their annotations: each becomes a labelled image or an issue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from cvbatch.core.types import MAX_MASK_CLASSES, Chunk, EncodedImage, Failure
from cvbatch.datasets.splits import DEFAULT_SHARES, choose_split
from cvbatch.images.masks import count_pixels
from cvbatch.images.orientation import (
    DEFAULT_LIMITS,
    ImageInfo,
    LabelCoordinates,
    Size,
    read_image_info,
)
from cvbatch.importers.annotations import (
    UNKNOWN_CLASS,
    AnnotatedBatch,
    AnnotatedDataset,
    Annotation,
    MaskIssue,
)
from cvbatch.importers.image_check import ImageCheck
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.outline_masks import upright_rle
from cvbatch.storage.listing import Progress

_MIN_SIDE_PX = 0.01
_UNKNOWN_SIZE: Size = (2**31 - 1, 2**31 - 1)  # of labels without image and size: no box is outside


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One row of labelled Parquet. Coordinates are pixels of the upright image."""

    image_id: str
    data: bytes | None  # None: labels without their image
    width: int | None  # None: not known, without the image
    height: int | None
    split: str
    labels: list[tuple[int, float]]  # (class id, score)
    boxes: np.ndarray  # (M, 4) float32 half-open xyxy, inside the image
    class_id: np.ndarray  # (M,) int32
    score: np.ndarray  # (M,) float32
    is_crowd: np.ndarray  # (M,) bool
    mask: np.ndarray | None  # (height, width) uint8
    area: np.ndarray | None = None  # (M,) float64 pixels² of the outlines; NaN: not known
    box_masks: list[dict[str, Any] | None] | None = None  # M, as RLE; None: not imported

    @property
    def classes_present(self) -> dict[str, list[int]]:
        """Return column → class ids: one per label and box, and each class of the mask once."""
        mask = np.zeros((0, 1), np.uint8) if self.mask is None else self.mask
        in_mask = np.flatnonzero(count_pixels(mask, MAX_MASK_CLASSES)).tolist()
        labels = [label for label, _ in self.labels]
        return {"labels": labels, "boxes": self.class_id.tolist(), "mask": in_mask}


def validated_images(
    dataset: AnnotatedDataset,
    options: ImportOptions,
    report: ImportReport,
    check: ImageCheck,
    on_progress: Progress,
) -> Iterator[LabelledImage]:
    """Yield the valid images of a data set; count images, objects and issues in the report.

    Args:
        dataset: the annotations.
        options: options of the import.
        report: counts.
        check: finds damaged images; the same one for all passes over the data set.
        on_progress: called with the number of images read so far.

    Raises:
        StoreError: the storage does not respond.
    """
    validator = _Validator(dataset, options, report)
    num_read = 0

    def annotated(batch: AnnotatedBatch) -> Iterator[EncodedImage]:
        nonlocal num_read
        for image in _encoded_images(batch, has_images=dataset.has_images):
            num_read += 1
            on_progress(num_read)
            if image.image_id in batch.annotations:
                yield image

    for batch in dataset.batches(report):
        for image, damage in check.with_damage(annotated(batch)):
            annotation = batch.annotations[image.image_id]
            report.num_objects_found += len(annotation.boxes)
            labelled = validator.validate(image, damage, annotation)
            if labelled is None:
                report.num_objects_of_dropped_images += len(annotation.boxes)
                continue
            report.images[labelled.split] += 1
            report.objects[labelled.split] += len(labelled.boxes)
            for column, ids in labelled.classes_present.items():
                if column in dataset.columns:
                    names = dataset.classes[column]
                    report.classes[column].update(names[class_id] for class_id in ids)
            yield labelled


def _encoded_images(batch: AnnotatedBatch, *, has_images: bool) -> Iterator[EncodedImage]:
    if has_images:
        yield from batch.reader.read(Chunk("", tuple(batch.items)), DEFAULT_LIMITS.max_bytes)
    else:
        yield from (EncodedImage(item.image_id, item.uri, b"") for item in batch.items)


@dataclass(frozen=True)
class _Validator:
    """Applies the rules of one import to one image at a time."""

    dataset: AnnotatedDataset
    options: ImportOptions
    report: ImportReport

    def validate(
        self, image: EncodedImage, damage: Failure | None, annotation: Annotation
    ) -> LabelledImage | None:
        """Return the labelled image, or None if it is dropped; the report counts the reason."""
        if annotation.labels is not None and UNKNOWN_CLASS in dict(annotation.labels):
            kind = self.dataset.unknown_label_kind
            self.report.record(kind, image.uri or image.image_id)
            return None
        if not self.dataset.has_images:
            return self._without_image(image, annotation)
        if image.failure is not None:
            kind = "image_missing" if image.failure.kind == "missing" else "image_unreadable"
            self.report.record(kind, image.failure.message)
            return None
        info = read_image_info(image.data)
        if isinstance(info, Failure):
            self.report.record("image_unreadable", f"{image.uri}: {info.message}")
            return None
        if damage is not None:
            example = f"{image.uri}: {damage.message}"
            if self.report.record("image_damaged", example) != "keep":
                return None
        frame = LabelCoordinates(info, self._refers_to_upright(info, annotation))
        if annotation.declared_hw is not None and annotation.declared_hw != frame.size_hw:
            declared = _format_size(annotation.declared_hw)
            example = f"{image.uri} is {_format_size(frame.size_hw)}, not {declared}"
            if self.report.record("declared_size", example) != "keep":
                return None
        return self._labelled(image, annotation, frame)

    def _without_image(self, image: EncodedImage, annotation: Annotation) -> LabelledImage | None:
        """Return the labels alone; they refer to the pixels of the declared size."""
        declared = annotation.declared_hw or _UNKNOWN_SIZE
        if annotation.declared_hw and declared[0] * declared[1] > DEFAULT_LIMITS.max_pixels:
            self.report.record("size_invalid", f"{image.image_id}: {_format_size(declared)}")
            declared = _UNKNOWN_SIZE
        info = ImageInfo(declared, 1)
        return self._labelled(image, annotation, LabelCoordinates(info, is_upright=True))

    def _refers_to_upright(self, info: ImageInfo, annotation: Annotation) -> bool:
        """Return whether labels refer to the upright image instead of the pixels as stored.

        With `auto` they refer to the upright image only if its size is the declared one and the
        stored size is not, because most annotation tools ignore EXIF.
        """
        if self.dataset.is_upright:
            return True
        if self.options.orientation != "auto":
            return self.options.orientation == "upright"
        return annotation.declared_hw == info.upright_hw != info.stored_hw

    def _mask(
        self, annotation: Annotation, frame: LabelCoordinates
    ) -> np.ndarray | MaskIssue | None:  # (H, W) uint8, upright
        if self.dataset.read_mask is None or frame.size_hw == _UNKNOWN_SIZE:
            return None
        mask = self.dataset.read_mask(annotation, frame.size_hw)
        if mask is None or isinstance(mask, MaskIssue):
            return mask
        upright = frame.mask_to_upright(mask)
        if upright is None and self.options.orientation == "auto":
            # The shape of the mask is that of the other frame.
            other_frame = LabelCoordinates(frame.image_info, not frame.is_upright)
            upright = other_frame.mask_to_upright(mask)
        return MaskIssue("mask_size", annotation.mask_uri) if upright is None else upright

    def _labelled(
        self,
        image: EncodedImage,
        annotation: Annotation,
        frame: LabelCoordinates,
    ) -> LabelledImage | None:
        annotation = annotation.in_pixels(frame.size_hw)
        mask = self._mask(annotation, frame)
        if isinstance(mask, MaskIssue):
            self.report.record(mask.kind, mask.message or image.uri)
            return None
        height, width = size = frame.image_info.upright_hw
        name = image.uri or image.image_id
        keep, boxes = _validate_boxes(
            frame.boxes_to_upright(annotation.boxes), annotation.class_id, size, name, self.report
        )
        class_id = annotation.class_id[keep]
        labels = annotation.labels
        if labels is None:
            labels = [(label, 1.0) for label in np.unique(class_id).tolist()]
        if frame.image_info.orientation != 1:
            self.report.record("turned", name)
        if not len(class_id) and not labels and mask is None:
            self.report.record("no_objects", name)
        shares, seed = self.options.split or DEFAULT_SHARES, self.options.seed
        return LabelledImage(
            image_id=annotation.image_id,
            data=image.data if self.dataset.has_images else None,
            width=None if size == _UNKNOWN_SIZE else width,
            height=None if size == _UNKNOWN_SIZE else height,
            split=choose_split(annotation.image_id, annotation.split, shares, seed),
            labels=list(labels),
            boxes=boxes[keep].astype(np.float32),
            class_id=class_id,
            score=annotation.score[keep],
            is_crowd=annotation.is_crowd[keep],
            mask=mask,
            area=None if annotation.area is None else annotation.area[keep],
            box_masks=self._box_masks(annotation, keep, frame, name),
        )

    def _box_masks(
        self,
        annotation: Annotation,
        keep: np.ndarray,  # (M,) bool
        frame: LabelCoordinates,
        name: str,
    ) -> list[dict[str, Any] | None] | None:
        if "box_masks" not in self.dataset.columns:
            return None
        masks: list[dict[str, Any] | None] = []
        for outline in compress(annotation.outlines, keep):
            try:
                masks.append(None if outline is None else upright_rle(outline, frame))
            except ValueError as error:
                self.report.record("outline_invalid", f"{name}: {error}")
                masks.append(None)
        return masks


def _validate_boxes(
    boxes: np.ndarray,  # (M, 4) float64 upright
    class_id: np.ndarray,  # (M,)
    size: Size,
    uri: str,
    report: ImportReport,
) -> tuple[np.ndarray, np.ndarray]:  # (M,) bool, (M, 4)
    """Return which boxes are kept, and all boxes clipped to the image.

    At most one issue is recorded per box. A side under 0.01 pixels counts as no side, because
    rounding can leave that much of an empty box.
    """
    height, width = size
    limits = np.array([width, height, width, height], np.float64)
    clipped = np.clip(boxes, 0, limits)
    is_unknown = class_id == UNKNOWN_CLASS
    is_flat = _shorter_sides(boxes) < _MIN_SIDE_PX
    is_outside = _shorter_sides(clipped) < _MIN_SIDE_PX
    is_partly_outside = np.any(clipped != boxes, axis=1)
    keep = np.ones(len(boxes), bool)
    for i in range(len(boxes)):
        for has_issue, kind in (
            (is_unknown, "class_unknown"),
            (is_flat, "box_no_area"),
            (is_outside, "box_outside"),
            (is_partly_outside, "box_partly_outside"),
        ):
            if has_issue[i]:
                corners = ", ".join(f"{corner:g}" for corner in boxes[i])
                keep[i] = report.record(kind, f"{uri} ({corners})") == "clip"
                break
    return keep, clipped


def _shorter_sides(boxes: np.ndarray) -> np.ndarray:  # (M, 4) → (M,)
    with np.errstate(over="ignore"):  # an annotation may contain any finite number
        sides = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(sides.min(axis=1, initial=np.inf))


def _format_size(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
