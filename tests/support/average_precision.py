"""Average precision of one image from plain arrays."""

from __future__ import annotations

import numpy as np

from cvbatch.core.types import Boxes
from cvbatch.metrics.average_precision import AveragePrecision
from cvbatch.metrics.box_matching import GroundTruthBoxes


def average_precision_of_image(
    image_key: str,
    xyxy: np.ndarray,  # (M, 4)
    score: np.ndarray,  # (M,)
    class_id: np.ndarray,  # (M,)
    truth_xyxy: np.ndarray,  # (N, 4)
    truth_class_id: np.ndarray,  # (N,)
    *,
    num_classes: int,
    is_crowd: np.ndarray | None = None,  # (N,) bool
    area: np.ndarray | None = None,  # (N,)
) -> AveragePrecision:
    """Return the metric of one image; see `Boxes` and `GroundTruthBoxes` for the arrays."""
    detections = Boxes(xyxy, score, class_id, np.zeros(len(xyxy), np.int64))
    none = np.zeros(len(truth_xyxy), np.int64)
    truth = GroundTruthBoxes(truth_xyxy, truth_class_id, none, is_crowd, area)
    return AveragePrecision.empty(num_classes).add([image_key], detections, truth)
