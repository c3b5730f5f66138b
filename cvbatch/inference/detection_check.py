"""Check at build time that the boxes of a detector fit the job's box format."""

from __future__ import annotations

import numpy as np

from cvbatch.config.models import DetectionConfig, LocalizationConfig
from cvbatch.core.errors import ModelError
from cvbatch.geometry.boxes import BOX_FORMATS, to_xyxy

_MAX_WRONG = 0.5  # fraction of boxes that may be inverted or outside in the format of the job
_MIN_RIGHT = 0.9  # fraction of boxes that must be plausible in the format that is suggested
_MIN_SIDE = 1.0  # pixels; a whole box in pixels is not smaller than one pixel


def check_boxes(
    config: DetectionConfig | LocalizationConfig,
    boxes: np.ndarray,  # (K, 4) in the format of the network
    height: int,
    width: int,
) -> None:
    """Check the boxes of a few images.

    A box is plausible if its sides are positive, at least a pixel, and its centre is in the image.
    Networks that are not trained have boxes that fit no format; they are accepted, except those of
    YOLO, whose outputs have no names that confirm the format.

    Raises:
        ModelError: most boxes are not plausible in the job's format, and nearly all are in another
            one, which the message names, or the detector is a YOLO; or all numbers are NaN or
            infinite.
    """
    if not len(boxes):
        return
    finite = boxes[np.isfinite(boxes).all(axis=1)]
    if not len(finite):
        raise ModelError(
            f"model {config.model!r}: the boxes of all images checked are NaN or infinite; check "
            "rescale and preprocessing, and the weights of the network"
        )
    right = {
        name: float(_are_plausible(to_xyxy(finite, name, height, width), height, width).mean())
        for name in BOX_FORMATS
    }
    wrong = 1 - right[config.box_format]
    best = max(right.values())
    detector: str = getattr(config, "detector", "")
    has_names = not detector.startswith("yolo_")  # one table is recognised by its shape alone
    if wrong <= _MAX_WRONG or (best < _MIN_RIGHT and has_names):
        return
    fitting = [name for name, fraction in right.items() if fraction >= best - 0.01]
    advice = f"the format that fits is {' or '.join(fitting)}; set box_format to it"
    if best < _MIN_RIGHT:
        advice = f"the outputs are not those of detector {detector}; set detector to another one"
    raise ModelError(
        f"model {config.model!r}: {wrong:.0%} of {len(finite):,} boxes are inverted, empty or "
        f"outside the image as box_format {config.box_format}; {advice}"
    )


def check_class_ids(
    name: str,
    class_ids: np.ndarray,  # (K,) int32
    num_classes: int | None,
) -> None:
    """Raise ModelError if boxes of a few images have class ids outside 0..num_classes − 1."""
    if num_classes is None or not len(class_ids):
        return
    low, high = int(class_ids.min()), int(class_ids.max())
    if low < 0 or high >= num_classes:
        raise ModelError(
            f"{name}: its boxes have the class ids {low} to {high}, but there are {num_classes} "
            "class names, for the ids from 0; set classes to the names of all ids, in their order"
        )


def _are_plausible(
    xyxy: np.ndarray,  # (K, 4) pixels
    height: int,
    width: int,
) -> np.ndarray:  # (K,) bool
    sides = xyxy[:, 2:] - xyxy[:, :2]
    centers = (xyxy[:, 2:] + xyxy[:, :2]) / 2
    size = np.array([width, height], np.float32)
    is_inside = ((centers >= 0) & (centers <= size)).all(axis=1)
    # a side may leave the image: networks predict whole objects that the image cuts
    is_box = ((sides >= _MIN_SIDE) & (sides <= 2 * size)).all(axis=1)
    return np.asarray(is_inside & is_box)
