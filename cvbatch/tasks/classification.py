"""Class scores read as labels, and their heatmaps."""

from __future__ import annotations

import numpy as np

from cvbatch.types import Heatmaps, Labels


def read_labels(
    scores: np.ndarray,  # (K, C) float32
    image_index: np.ndarray,  # (K,) the images the rows are of
    *,
    top_k: int,
    score_threshold: float | None = None,
) -> Labels:
    """Return the best `top_k` classes of each image, or with a threshold all that reach it.

    Best first; of equal scores the lower class first.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    if score_threshold is None:
        is_kept = np.broadcast_to(np.arange(scores.shape[1]) < top_k, scores.shape)
    else:
        is_kept = ranked >= score_threshold
    return Labels(
        class_id=order[is_kept].astype(np.int32),
        score=ranked[is_kept],
        image_index=np.repeat(image_index, is_kept.sum(axis=1)),
    )


def read_heatmaps(
    values: np.ndarray,  # (K, T, h, w) float32
    classes: np.ndarray,  # (K, T) int32
    scores: np.ndarray,  # (K, C) float32
    image_index: np.ndarray,  # (K,)
) -> Heatmaps:
    """Return the heatmaps of each image's best classes, best first."""
    num_images, top_k, height, width = values.shape
    return Heatmaps(
        values=values.reshape(num_images * top_k, height, width),
        class_id=classes.reshape(-1).astype(np.int32),
        score=np.take_along_axis(scores, classes.astype(np.int64), axis=1).reshape(-1),
        image_index=np.repeat(image_index, top_k),
    )
