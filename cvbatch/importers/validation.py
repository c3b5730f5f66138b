"""One image and what is said of it → one row, or a reason; every rule about oddities is here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cvbatch.core.types import MAX_MASK_CLASSES, Chunk, EncodedImage, Failure
from cvbatch.datasets.splits import DEFAULT_SHARES, choose_split
from cvbatch.images.masks import class_areas
from cvbatch.images.orientation import (
    DEFAULT_LIMITS,
    ImageInfo,
    LabelCoordinates,
    Size,
    read_image_info,
)
from cvbatch.importers.annotations import UNKNOWN_CLASS, AnnotatedDataset, Annotation, MaskFault
from cvbatch.importers.import_report import ImportReport
from cvbatch.importers.options import ImportOptions

_NO_SIDE = 0.01  # pixels


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """A labelled image as it is written; all in pixels of the upright image."""

    image_id: str
    data: bytes
    width: int
    height: int
    split: str
    labels: list[tuple[int, float]]  # (class, score)
    boxes: np.ndarray  # (M, 4) float32 half-open xyxy, inside the image
    class_id: np.ndarray  # (M,) int32
    score: np.ndarray  # (M,) float32
    is_crowd: np.ndarray  # (M,) bool
    mask: np.ndarray | None  # (height, width) uint8

    @property
    def classes_present(self) -> dict[str, list[int]]:
        """Return the classes in each column, once for each image or box that has them."""
        in_mask = [] if self.mask is None else class_areas(self.mask, MAX_MASK_CLASSES)[0].tolist()
        labels = [label for label, _ in self.labels]
        return {"labels": labels, "boxes": self.class_id.tolist(), "mask": in_mask}


def validated_images(truth: AnnotatedDataset, options: ImportOptions, report: ImportReport) -> Iterator[LabelledImage]:
    """Yield the rows of a data set, counting in the report what is found, left out and mended.

    Raises:
        StoreError: the store does not answer.
    """
    examination = _Examination(truth, options, report)
    for batch in truth.batches(report):
        for image in batch.reader.read(Chunk("", tuple(batch.items)), DEFAULT_LIMITS.max_bytes):
            example = batch.examples.get(image.image_id)
            if example is None:
                continue
            report.num_objects_found += len(example.boxes)
            row = examination.row(image, example)
            if row is None:
                report.num_objects_left += len(example.boxes)
                continue
            report.images[row.split] += 1
            report.objects[row.split] += len(row.boxes)
            for column, ids in row.classes_present.items():
                if column in truth.columns:
                    names = truth.classes[column]
                    report.classes[column].update(names[class_id] for class_id in ids)
            yield row


@dataclass(frozen=True)
class _Examination:
    """The rules of one import, and where their findings are counted."""

    truth: AnnotatedDataset
    options: ImportOptions
    report: ImportReport

    def row(self, image: EncodedImage, example: Annotation) -> LabelledImage | None:
        """Return the row of one image, or None where it is dropped; the report says why."""
        if image.failure is not None:
            kind = "image_missing" if image.failure.kind == "missing" else "image_unreadable"
            self.report.note(kind, image.failure.message)
            return None
        picture = read_image_info(image.data)
        if isinstance(picture, Failure):
            self.report.note("image_unreadable", f"{image.uri}: {picture.message}")
            return None
        if example.labels is not None and UNKNOWN_CLASS in dict(example.labels):
            self.report.note("folder_unknown", image.uri)
            return None
        frame = LabelCoordinates(picture, self._refers_to_upright(picture, example))
        if example.declared_hw is not None and example.declared_hw != frame.size_hw:
            told = f"{image.uri} is {_size(frame.size_hw)}, not {_size(example.declared_hw)}"
            if self.report.note("declared_size", told) != "keep":
                return None
        mask = self._mask(example, frame)
        if isinstance(mask, MaskFault):
            self.report.note(mask.kind, mask.message or image.uri)
            return None
        return self._labelled(image, example, frame, mask)

    def _refers_to_upright(self, picture: ImageInfo, example: Annotation) -> bool:
        """Say whether labels refer to the upright image rather than to the pixels as stored.

        Where nobody said, the size in the annotation tells, if it is the one and not the other.
        Otherwise it is the stored pixels: what most annotations were made with knows no EXIF.
        """
        if self.truth.is_upright:
            return True
        if self.options.orientation != "auto":
            return self.options.orientation == "upright"
        return example.declared_hw == picture.upright_hw != picture.stored_hw

    def _mask(self, example: Annotation, frame: LabelCoordinates) -> np.ndarray | MaskFault | None:
        """Return the mask upright, (H, W) uint8; None where the image has none."""
        if self.truth.read_mask is None:
            return None
        found = self.truth.read_mask(example, frame.size_hw)
        if found is None or isinstance(found, MaskFault):
            return found
        upright = frame.mask_to_upright(found)
        if upright is None and self.options.orientation == "auto":  # its shape tells better
            upright = LabelCoordinates(frame.image_info, not frame.is_upright).mask_to_upright(
                found
            )
        return MaskFault("mask_size", example.mask_at) if upright is None else upright

    def _labelled(
        self,
        image: EncodedImage,
        example: Annotation,
        frame: LabelCoordinates,
        mask: np.ndarray | None,  # (H, W) uint8
    ) -> LabelledImage:
        height, width = frame.image_info.upright_hw
        boxes = frame.boxes_to_upright(example.boxes)
        keep, boxes = _judge(boxes, example.class_id, (height, width), image.uri, self.report)
        class_id = example.class_id[keep]
        labels = example.labels
        if labels is None:
            labels = [(label, 1.0) for label in np.unique(class_id).tolist()]
        if frame.image_info.orientation != 1:
            self.report.note("turned", image.uri)
        if not len(class_id) and not labels and mask is None:
            self.report.note("no_objects", image.uri)
        shares, seed = self.options.split or DEFAULT_SHARES, self.options.seed
        return LabelledImage(
            image_id=example.image_id,
            data=image.data,
            width=width,
            height=height,
            split=choose_split(example.image_id, example.split, shares, seed),
            labels=list(labels),
            boxes=boxes[keep].astype(np.float32),
            class_id=class_id,
            score=example.score[keep],
            is_crowd=example.is_crowd[keep],
            mask=mask,
        )


def _judge(
    boxes: np.ndarray,  # (M, 4) float64 upright
    class_id: np.ndarray,  # (M,)
    size: Size,
    uri: str,
    report: ImportReport,
) -> tuple[np.ndarray, np.ndarray]:  # (M,) bool, (M, 4)
    """Return which boxes stay, and all of them clipped to the image. A box has one fault at most.

    A side of less than a hundredth of a pixel is none: it is what rounding leaves of nothing.
    """
    height, width = size
    limits = (width, height, width, height)
    clipped = np.clip(boxes, 0, limits)
    is_unknown = class_id == UNKNOWN_CLASS
    is_flat = _least_side(boxes) < _NO_SIDE
    is_outside = _least_side(clipped) < _NO_SIDE
    is_partly = np.any(clipped != boxes, axis=1)
    keep = np.ones(len(boxes), bool)
    for i in range(len(boxes)):
        for fault, kind in (
            (is_unknown, "class_unknown"),
            (is_flat, "box_no_area"),
            (is_outside, "box_outside"),
            (is_partly, "box_partly_outside"),
        ):
            if fault[i]:
                told = ", ".join(f"{side:g}" for side in boxes[i])
                keep[i] = report.note(kind, f"{uri} ({told})") == "clip"
                break
    return keep, clipped


def _least_side(boxes: np.ndarray) -> np.ndarray:  # (M, 4) → (M,)
    with np.errstate(over="ignore"):  # of numbers that are on no image
        sides = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(sides.min(axis=1, initial=np.inf))


def _size(size: Size) -> str:
    return f"{size[1]} x {size[0]}"
