"""Draw the mask of an image from the outlines of its objects."""

from __future__ import annotations

from typing import Any

import numpy as np

from cvbatch.core.types import VOID_CLASS
from cvbatch.images.orientation import DEFAULT_LIMITS, LabelCoordinates, Size
from cvbatch.images.rle import compress_rle, encode_rle
from cvbatch.importers.annotations import (
    UNKNOWN_CLASS,
    AnnotatedDataset,
    Annotation,
    Batches,
    MaskIssue,
)
from cvbatch.importers.class_table import ClassTable, check_mask_classes
from cvbatch.importers.options import ImportOptions
from cvbatch.importers.polygons import Outline, coco_region, rasterize


def outlined_dataset(
    table: ClassTable,
    columns: tuple[str, ...],
    batches: Batches,
    options: ImportOptions,
    *,
    is_upright: bool = False,
) -> AnnotatedDataset:
    """Return a data set of boxes, with masks if outlines are drawn.

    Args:
        table: classes of labels and boxes; in the mask, 0 is the background.
        columns: without masks.
        batches: yields the images.
        options: which masks are imported.
        is_upright: see `AnnotatedDataset`.

    Raises:
        ConfigError: a mask cannot have so many classes.
    """
    classes = {"labels": table.names, "boxes": table.names}
    if options.has_box_masks:
        columns = (*columns, "box_masks")
    if options.has_masks:
        columns = (*columns, "mask")
        classes["mask"] = ("background", *table.names)
        check_mask_classes(
            classes["mask"], "; omit --masks, or set fewer --classes and --unknown drop"
        )
    read_mask = draw_outlines if options.has_masks else None
    return AnnotatedDataset(columns, classes, True, batches, read_mask, is_upright)


def draw_outlines(annotation: Annotation, frame_hw: Size) -> np.ndarray | MaskIssue:
    """Return the mask of an image, (h, w) uint8: 0 is the background; see `MaskReader`.

    Smaller objects are drawn over larger ones. Where only the box of an object is known, its pixels
    that no other object covers are void.
    """
    mask = np.zeros(frame_hw, np.uint8)
    rank = np.full(frame_hw, np.iinfo(np.int64).max)  # of the topmost object; smaller is above
    objects = zip(annotation.class_id.tolist(), annotation.outlines, annotation.boxes, strict=True)
    for class_id, outline, box in objects:
        if class_id == UNKNOWN_CLASS:  # recorded with its box
            continue
        if outline is None:
            _draw_void(mask, box)
            continue
        try:
            region = rasterize(outline, frame_hw)
        except ValueError as error:
            return MaskIssue("mask_unreadable", f"{annotation.image_id}: {error}")
        object_rank = int(region.sum()) * 256 + class_id  # by area, then by class id
        is_above = region & (object_rank < rank)
        mask[is_above] = class_id + 1
        rank[is_above] = object_rank
    return mask


def upright_rle(outline: Outline, frame: LabelCoordinates) -> dict[str, Any]:
    """Return the mask of one object as COCO's compressed RLE: size and counts.

    Args:
        outline: in the coordinates of the labels.
        frame: of the labels.

    Raises:
        ValueError: an RLE has another size or is not valid, or the size of the image is not known.
    """
    height, width = frame.size_hw
    if height * width > DEFAULT_LIMITS.max_pixels:
        raise ValueError("the size of its image is not known")
    region = frame.mask_to_upright(coco_region(outline, frame.size_hw).astype(np.uint8))
    if region is None:
        raise ValueError(f"it is not of {height} x {width} pixels")
    counts = compress_rle(encode_rle(region.astype(bool)))
    return {"size": list(region.shape), "counts": counts}


def _draw_void(mask: np.ndarray, box: np.ndarray) -> None:  # (4,) half-open xyxy
    height, width = mask.shape
    corners = np.clip(np.nan_to_num(box), 0, (width, height, width, height))
    left, top = np.floor(corners[:2]).astype(int).tolist()
    right, bottom = np.ceil(corners[2:]).astype(int).tolist()
    region = mask[top:bottom, left:right]
    region[region == 0] = VOID_CLASS
