"""Check at build time what the masks of a detector are: logits or probabilities, of box or image.

The graph (`value_ranges`) and the masks of a few images must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cvbatch.config.models import DetectionConfig, ModelConfig
from cvbatch.core.errors import ModelError
from cvbatch.geometry.boxes import iou, to_xyxy
from cvbatch.inference.detector_decoding import Size
from cvbatch.inference.forward_pass import MaskValues, Tensors
from cvbatch.inference.graph import task_tensors
from cvbatch.inference.outputs_masks import mask_tensors, separate
from cvbatch.inference.value_ranges import Values, values_of
from cvbatch.models.frameworks import tf

_TOLERANCE = 1e-3
_CHECKED_BOXES = 20  # of each image, those with the best scores
_MIN_BOXES = 5  # fewer tell nothing
_LARGE = 0.5  # share of the image; over a larger box both kinds of mask look alike
_MIN_SHARE = 0.5  # of a mask of the whole image, inside of its box
_MAX_SHARE = 0.9  # of a mask of a box, if it is taken as one of the whole image
_AGREEMENT = 0.5  # IoU of a box with the box around its mask


class MaskDecision(NamedTuple):
    """What the masks are, and why, in one sentence for the log."""

    values: MaskValues
    reason: str


def observe_masks(
    config: ModelConfig, raw: Tensors, size: Size, known: Mapping[str, Values]
) -> tuple[Values | MaskDecision, Tensors]:
    """Return what the graph says of the masks of boxes, and those of the best boxes.

    Args:
        config: resolved.
        raw: outputs of the network by name, in a function that is being traced.
        size: height and width of the network's input in pixels.
        known: what is known of other tensors, see `values_of`.

    Returns:
        Values with low and high of all masks; boxes (K, 4), scores (K,), masks (K, h, w) as the
        network has them. Where no values are needed, the decision, without tensors.
    """
    if not isinstance(config, DetectionConfig):
        return MaskDecision("logits", ""), {}
    if config.masks is None:
        note = (
            f"model {config.model} has masks of its boxes, which are not stored; set masks: box, "
            "image or prototypes to store them"
        )
        return MaskDecision("logits", note if separate(raw)[1] else ""), {}
    if config.masks == "prototypes":
        note = f"model {config.model!r}: its masks are sums of prototypes; sigmoid is applied"
        return MaskDecision("logits", note), {}
    outputs = task_tensors(raw, config, size)
    masks = outputs["masks"]
    finite = tf.boolean_mask(masks, tf.math.is_finite(masks))
    as_image = mask_tensors(config.model_copy(update={"masks": "image"}), outputs, "logits")
    best = _best(tf.cast(outputs["boxes"], tf.float32), outputs["scores"], as_image["masks"])
    limits = {"low": tf.reduce_min(finite), "high": tf.reduce_max(finite)}
    return values_of(masks, known), limits | best


def decide_masks(
    config: Any,  # ModelConfig
    values: Values | MaskDecision,
    observed: Mapping[str, np.ndarray],
    size: Size | None,
) -> MaskDecision:
    """Decide whether masks are logits or probabilities; check that they cover what the job says.

    Args:
        values: as `observe_masks`.
        observed: likewise.
        size: height and width of the network's input, to compare masks with their boxes; None
            without images of the job.

    Raises:
        ModelError: graph and masks disagree, or the masks do not cover what the job says.
    """
    if isinstance(values, MaskDecision):
        return values
    name = f"model {config.model!r}"
    decision = decide_values(name, values, float(observed["low"]), float(observed["high"]))
    if size is not None:
        threshold = 0.0 if decision.values == "logits" else 0.5
        _check_kind(name, config, observed, threshold, size)
    return decision


def top_boxes(scores: tf.Tensor) -> Any:  # (B, N) or (B, N, C)
    """Return the best scores of each image, and their boxes: values and indices (B, K)."""
    best = scores if len(scores.shape) == 2 else tf.reduce_max(scores, axis=2)
    return tf.math.top_k(best, min(_CHECKED_BOXES, best.shape[1] or _CHECKED_BOXES))


def decide_values(name: str, values: Values, low: float, high: float) -> MaskDecision:
    """Decide whether masks are logits or probabilities.

    Where the graph does not tell, values in 0..1 are probabilities: as logits they would put every
    pixel of every mask inside.

    Args:
        name: of the model, for messages.
        values: of the masks, from the graph.
        low: smallest value in the masks of a few images.
        high: largest value.

    Raises:
        ModelError: graph and masks disagree.
    """
    span = f"values of masks are {low:.3g} to {high:.3g}"
    is_in_range = low >= -_TOLERANCE and high <= 1 + _TOLERANCE
    if values.are_probabilities != is_in_range and (values.are_probabilities or values.are_logits):
        kind = "probabilities" if values.are_probabilities else "logits"
        raise ModelError(
            f"{name}: its masks should be {kind}, of {values.source}, but the {span}; end the "
            "network's masks with a sigmoid, or without any activation"
        )
    if is_in_range:
        return MaskDecision(
            "probabilities", f"{name}: its masks are probabilities ({span}); 0.5 is the threshold"
        )
    return MaskDecision("logits", f"{name}: its masks are logits ({span}); sigmoid is applied")


def _best(boxes: Any, scores: Any, masks: Any) -> dict[str, Any]:
    """Return boxes, scores and masks of the boxes with the best scores of each image."""
    scores = tf.cast(scores, tf.float32)
    found = top_boxes(scores)
    chosen = tf.gather(masks, found.indices, axis=1, batch_dims=1)
    if len(chosen.shape) == 5:  # a mask of each class; class ids have one mask
        class_id = tf.gather(tf.argmax(scores, axis=2), found.indices, axis=1, batch_dims=1)
        chosen = tf.gather(chosen, class_id, axis=2, batch_dims=2)
    return {
        "boxes": tf.reshape(tf.gather(boxes, found.indices, axis=1, batch_dims=1), (-1, 4)),
        "scores": tf.reshape(found.values, (-1,)),
        "masks": tf.reshape(chosen, (-1, *chosen.shape[2:])),
    }


def _check_kind(
    name: str,
    config: DetectionConfig,
    outputs: Mapping[str, np.ndarray],
    threshold: float,
    size: Size,
) -> None:
    """Raise ModelError if most masks do not cover what the job says; see `decide_masks`."""
    is_sure = outputs["scores"] >= config.score_threshold
    regions = outputs["masks"][is_sure] > threshold
    xyxy = to_xyxy(outputs["boxes"][is_sure], config.box_format, *size)
    cells = np.array(regions.shape[:0:-1] * 2) / np.array(size[::-1] * 2)
    figures = [
        _fit_as_image(region, box)
        for region, box in zip(regions, xyxy * cells, strict=True)
        if region.any() and np.isfinite(box).all() and _area(box) <= _LARGE * region.size
    ]
    if len(figures) < _MIN_BOXES:
        return
    share, overlap = np.median(np.array(figures), axis=0)
    if config.masks == "image" and share < _MIN_SHARE:
        raise ModelError(
            f"{name}: as masks: image only {share:.0%} of a mask is inside of its box; set masks: "
            "box if a mask covers its box alone, or crop the masks to their boxes in the network"
        )
    if config.masks == "box" and share > _MAX_SHARE and overlap > _AGREEMENT:
        raise ModelError(
            f"{name}: {share:.0%} of a mask is inside of its box if it covers the whole image; set "
            "masks: image"
        )


def _area(box: np.ndarray) -> float:
    return float(np.prod(np.maximum(box[2:] - box[:2], 0)))


def _fit_as_image(
    region: np.ndarray,  # (h, w) bool over the whole input, with a pixel inside
    box: np.ndarray,  # (4,) xyxy in cells
) -> tuple[float, float]:
    """Return the share of the region inside of the box, and the IoU of its own box with it."""
    rows, columns = np.nonzero(region)
    x, y = columns + 0.5, rows + 0.5
    is_inside = (x > box[0] - 1) & (x < box[2] + 1) & (y > box[1] - 1) & (y < box[3] + 1)
    own = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float64)
    return float(is_inside.mean()), float(iou(own, box[None])[0, 0])
