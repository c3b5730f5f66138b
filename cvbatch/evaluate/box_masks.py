"""Masks of boxes of predictions and labels, for COCO's average precision of masks (segm)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from cvbatch.core.types import Boxes
from cvbatch.evaluate.scoring import struct_values
from cvbatch.images.rle import check_runs, parse_compressed_rle
from cvbatch.metrics.box_matching import GroundTruthBoxes, MaskPair
from cvbatch.metrics.mask_overlap import RunMasks


def masked_objects(
    detections: Boxes,
    masks: Any,  # structs, of the detections
    truth: GroundTruthBoxes,
    true_masks: Any,  # structs, of the true boxes
    is_used: np.ndarray,  # (n,) bool, images whose true boxes all have masks
) -> tuple[Boxes, GroundTruthBoxes, MaskPair]:
    """Return what is matched by masks: detections and true boxes of the used images, their masks.

    Raises:
        ValueError: a detection lacks its mask, a mask is damaged, or the two sides have different
            sizes.
    """
    is_detection, is_true = is_used[detections.image_index], is_used[truth.image_index]
    found = Boxes(*(column[is_detection] for column in vars(detections).values()))
    objects = GroundTruthBoxes(*(column[is_true] for column in vars(truth).values()))
    sizes: dict[int, tuple[int, int]] = {}  # of the images
    pair = MaskPair(
        _run_masks(masks.filter(pa.array(is_detection)), found.image_index, sizes),
        _run_masks(true_masks.filter(pa.array(is_true)), objects.image_index, sizes),
    )
    return found, objects, pair


def _run_masks(
    structs: Any,  # M
    image_index: np.ndarray,  # (M,)
    sizes: dict[int, tuple[int, int]],
) -> RunMasks:
    """Parse masks; all masks of an image must have the size that `sizes` has, or gets."""
    counts = struct_values(structs, "counts").tolist()
    shapes = struct_values(structs, "size").tolist()
    runs = []
    for image, text, shape in zip(image_index.tolist(), counts, shapes, strict=True):
        if text is None or shape is None or len(shape) != 2:
            raise ValueError("a box has no mask, or its mask lacks its size or its counts")
        height, width = shape.tolist()
        size = sizes.setdefault(image, (height, width))
        if size != (height, width):
            raise ValueError(
                f"masks of one image are of {size[0]} x {size[1]} and of {height} x {width} pixels"
            )
        runs.append(check_runs(parse_compressed_rle(text), size))
    return RunMasks.of(runs)
