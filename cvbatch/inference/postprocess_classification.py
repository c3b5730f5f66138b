"""Post-processing of classification: class scores to labels and heatmaps; merging of tiles."""

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
    outputs: Outputs,  # scores (K, C); heatmaps (K, M, h, w) and heatmap_classes (K, M)
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
) -> ModelPredictions:
    """Return the labels and, if configured, heatmaps of K images."""
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
    """Return the labels and, if configured, heatmaps of one tiled image."""
    tile_outputs = list(tiles)
    outputs = {
        name: np.concatenate([tile[name] for tile in tile_outputs]) for name in tile_outputs[0]
    }
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
    scores: np.ndarray,  # (T, C) float32, of the tiles of one image
) -> np.ndarray:  # (1, C) float32
    """Return the class scores of a tiled image: the maximum over its tiles."""
    merged: np.ndarray = scores.max(axis=0, keepdims=True)
    return merged


def read_labels(
    scores: np.ndarray,  # (K, C) float32
    image_index: np.ndarray,  # (K,) positions in the batch
    *,
    top_k: int,
    score_threshold: float | None = None,
) -> Labels:
    """Select the classes of each image, best first; of equal scores the lower class id first.

    Args:
        scores: of every class.
        image_index: of the rows.
        top_k: number of classes to select; unused with a threshold.
        score_threshold: minimum score: all classes that reach it are selected.
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
    values: np.ndarray,  # (K, M, h, w) float32
    classes: np.ndarray,  # (K, M) int32
    scores: np.ndarray,  # (K, C) float32
    image_index: np.ndarray,  # (K,) positions in the batch
) -> Heatmaps:
    """Return M heatmaps of each image with class, score and image index, in the given order."""
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
    values: np.ndarray,  # (T, K, h, w) float32, of the tiles of one image
    classes: np.ndarray,  # (T, K) int32: the top K classes of each tile
    scores: np.ndarray,  # (T, C) float32
    placements: Sequence[Placement],  # T
    position: int,  # of the image in its batch
) -> Heatmaps:
    """Merge the heatmaps of tiles into heatmaps of the image's top K classes, best first.

    A merged map covers the original with cells of the same size as those of the tiles. The value
    of a cell is the maximum, over the tiles that have a heatmap of the class, of the value at the
    cell's centre; then the map is divided by its maximum.

    At least one tile has a heatmap of each class: the tile where the class has its maximum score. A
    class that ranks before it in this tile also ranks before it in the image, so the class is among
    the top K of this tile.
    """
    top_k, grid_hw = values.shape[1], (values.shape[2], values.shape[3])
    image_scores = merge_scores(scores)[0]
    class_ids = np.argsort(-image_scores, kind="stable")[:top_k].astype(np.int32)
    height, width = canvas_size(placements[0], grid_hw)
    maps = np.zeros((top_k, height, width), np.float32)
    for tile, placement in enumerate(placements):
        row, rows, column, columns = sample_grid(placement, (height, width), grid_hw)
        for rank, k in np.argwhere(class_ids[:, None] == classes[tile]):
            covered = maps[rank, row : row + len(rows), column : column + len(columns)]
            np.maximum(covered, values[tile, k][np.ix_(rows, columns)], out=covered)
    peak = maps.max(axis=(1, 2), keepdims=True)
    maps /= np.where(peak > 0, peak, 1)
    return Heatmaps(
        values=maps.reshape(-1),
        height=np.full(top_k, height, np.int32),
        width=np.full(top_k, width, np.int32),
        class_id=class_ids,
        score=image_scores[class_ids],
        image_index=np.full(top_k, position, np.int64),
    )
