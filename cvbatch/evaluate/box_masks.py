"""Masks of boxes of predictions and labels, for COCO's average precision of masks (segm)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cvbatch.core.types import Boxes
from cvbatch.evaluate.scoring import flatten_lists, struct_values
from cvbatch.images.rle import check_runs, parse_compressed_rle
from cvbatch.metrics.box_matching import GroundTruthBoxes, MaskPair
from cvbatch.metrics.mask_overlap import RunMasks

COLUMN = "box_masks"


class MaskedObjects(NamedTuple):
    """Detections and objects of the images whose boxes all have masks."""

    is_complete: np.ndarray  # (n,) bool, of the images
    detections: Boxes
    truth: GroundTruthBoxes
    masks: MaskPair


def masked_objects(
    predicted: pa.Table,  # n rows of images with labelled boxes
    truth: pa.Table,  # n rows
    detections: Boxes,
    rows: np.ndarray,  # (M,) of the detections in the flattened lists of boxes
    true_boxes: GroundTruthBoxes,
) -> MaskedObjects | None:
    """Return what is matched by masks; None if predictions or labels have no masks.

    Args:
        true_boxes: an area of NaN is that of the mask.

    Raises:
        ValueError: a mask is damaged, or the two sides have different sizes.
    """
    if COLUMN not in predicted.column_names or COLUMN not in truth.column_names:
        return None
    true_structs, is_complete = _complete_masks(truth, true_boxes.image_index)
    lengths = [pc.list_value_length(predicted[name]).to_numpy() for name in ("boxes", COLUMN)]
    if not np.array_equal(*np.nan_to_num(lengths)):
        raise ValueError("it has not one mask for each box")
    structs, _ = flatten_lists(predicted[COLUMN])
    is_used = is_complete[detections.image_index]
    is_true = is_complete[true_boxes.image_index]
    sizes: dict[int, tuple[int, int]] = {}  # of the images
    masks = MaskPair(
        _run_masks(structs, rows[is_used], detections.image_index[is_used], sizes),
        _run_masks(true_structs, np.flatnonzero(is_true), true_boxes.image_index[is_true], sizes),
    )
    objects = GroundTruthBoxes(*(column[is_true] for column in vars(true_boxes).values()))
    area = np.asarray(objects.area)
    return MaskedObjects(
        is_complete,
        Boxes(*(column[is_used] for column in vars(detections).values())),
        replace(objects, area=np.where(np.isnan(area), masks.truth.areas, area)),
        masks,
    )


def _complete_masks(
    truth: pa.Table,  # n rows
    image_index: np.ndarray,  # (N,) of the boxes
) -> tuple[Any, np.ndarray]:  # N structs, (n,) bool
    """Return the masks of all boxes, null if missing, and whether an image lacks none."""
    stored, stored_index = flatten_lists(truth[COLUMN])
    counts, stored_counts = (
        np.bincount(index, minlength=truth.num_rows) for index in (image_index, stored_index)
    )
    is_complete = counts == stored_counts
    is_complete[stored_index[~np.asarray(stored.is_valid())]] = False
    position = np.full(len(image_index), -1, np.int64)
    position[is_complete[image_index]] = np.flatnonzero(is_complete[stored_index])
    return stored.take(pa.array(position, mask=position < 0)), is_complete


def _run_masks(
    structs: Any,
    rows: np.ndarray,  # (M,)
    image_index: np.ndarray,  # (M,)
    sizes: dict[int, tuple[int, int]],
) -> RunMasks:
    """Parse masks; all masks of an image must have the size that `sizes` has, or gets."""
    chosen = structs.take(pa.array(rows))
    counts = struct_values(chosen, "counts").tolist()
    shapes = struct_values(chosen, "size").tolist()
    runs = []
    for image, text, shape in zip(image_index.tolist(), counts, shapes, strict=True):
        if text is None or shape is None or len(shape) != 2:
            raise ValueError("a mask of a box lacks its size or its counts")
        height, width = shape.tolist()
        size = sizes.setdefault(image, (height, width))
        if size != (height, width):
            raise ValueError(
                f"masks of one image are of {size[0]} x {size[1]} and of {height} x {width} pixels"
            )
        runs.append(check_runs(parse_compressed_rle(text), size))
    return RunMasks.of(runs)
