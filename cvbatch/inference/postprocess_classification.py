"""Post-processing of classification: class scores to labels, and heatmaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cvbatch.config.models import ClassificationConfig, LocalizationConfig
from cvbatch.core.types import Heatmaps, Labels, ModelPredictions, ModelSpec
from cvbatch.geometry.resize import Placement, sample_grid
from cvbatch.geometry.tiling import canvas_size
from cvbatch.inference.engines import Outputs


def read_outputs(
    config: ClassificationConfig | LocalizationConfig,
    spec: ModelSpec,
    outputs: Outputs,  # scores (K, C); heatmaps (K, T, h, w) and heatmap_classes (K, T)
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
) -> ModelPredictions:
    """Return the labels, and the heatmaps if there are any, of K images."""
    labels = _labels(config, outputs["scores"], image_index)
    if config.heatmap is None:
        return ModelPredictions(labels=labels)
    heatmaps = read_heatmaps(
        outputs["heatmaps"], outputs["heatmap_classes"], outputs["scores"], image_index
    )
    return ModelPredictions(labels=labels, heatmaps=heatmaps)


def merge_tiles(
    config: ClassificationConfig,
    spec: ModelSpec,
    tiles: Iterator[Outputs],  # T, each a batch of one
    placements: Sequence[Placement],  # T
    position: int,  # of the image in its batch
) -> ModelPredictions:
    """Return the labels, and the heatmaps if there are any, of one image that was cut."""
    rows = list(tiles)
    outputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    labels = _labels(config, merge_scores(outputs["scores"]), np.array([position], np.int64))
    if config.heatmap is None:
        return ModelPredictions(labels=labels)
    heatmaps = merge_heatmaps(
        outputs["heatmaps"], outputs["heatmap_classes"], outputs["scores"], placements, position
    )
    return ModelPredictions(labels=labels, heatmaps=heatmaps)


def _labels(
    config: ClassificationConfig | LocalizationConfig,
    scores: np.ndarray,  # (K, C)
    image_index: np.ndarray,  # (K,)
) -> Labels:
    threshold = None
    if isinstance(config, ClassificationConfig) and config.multi_label:
        threshold = config.score_threshold
    return read_labels(scores, image_index, top_k=config.top_k, score_threshold=threshold)


def merge_scores(
    scores: np.ndarray,  # (T, C) float32, of an image's tiles
) -> np.ndarray:  # (1, C) float32
    """Return the image's class scores: each the largest of its tiles'."""
    merged: np.ndarray = scores.max(axis=0, keepdims=True)
    return merged


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
        values=values.reshape(-1),
        height=np.full(num_images * top_k, height, np.int32),
        width=np.full(num_images * top_k, width, np.int32),
        class_id=classes.reshape(-1).astype(np.int32),
        score=np.take_along_axis(scores, classes.astype(np.int64), axis=1).reshape(-1),
        image_index=np.repeat(image_index, top_k),
    )


def merge_heatmaps(
    values: np.ndarray,  # (T, K, h, w) float32, of an image's tiles
    classes: np.ndarray,  # (T, K) int32: each tile's best
    scores: np.ndarray,  # (T, C) float32
    placements: Sequence[Placement],  # T
    position: int,  # of the image in its batch
) -> Heatmaps:
    """Return the heatmaps of a cut image's best K classes, best first, over the whole original.

    A map has cells of the layer's size as the tiles show it. A cell has the largest of the values
    at its centre in the tiles with a heatmap of the class; then all are divided by their maximum.
    There is such a tile: that in which the class has its score for the image. What ranks before
    it there ranks before it in the image, so it is among the best K of that tile too.
    """
    top_k, grid_hw = values.shape[1], (values.shape[2], values.shape[3])
    best = merge_scores(scores)[0]
    top = np.argsort(-best, kind="stable")[:top_k].astype(np.int32)
    height, width = canvas_size(placements[0], grid_hw)
    maps = np.zeros((top_k, height, width), np.float32)
    for tile, placement in enumerate(placements):
        row, rows, column, columns = sample_grid(placement, (height, width), grid_hw)
        for rank, k in np.argwhere(top[:, None] == classes[tile]):
            covered = maps[rank, row : row + len(rows), column : column + len(columns)]
            np.maximum(covered, values[tile, k][np.ix_(rows, columns)], out=covered)
    peak = maps.max(axis=(1, 2), keepdims=True)
    maps /= np.where(peak > 0, peak, 1)
    return Heatmaps(
        values=maps.reshape(-1),
        height=np.full(top_k, height, np.int32),
        width=np.full(top_k, width, np.int32),
        class_id=top,
        score=best[top],
        image_index=np.full(top_k, position, np.int64),
    )
