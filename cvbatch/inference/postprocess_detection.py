"""Post-processing of detection: score threshold, non-maximum suppression, original pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from cvbatch.config.models import DetectionConfig
from cvbatch.core.types import ModelPredictions, ModelSpec, join_boxes
from cvbatch.geometry import boxes as box_arrays
from cvbatch.geometry.resize import Placement, boxes_to_original
from cvbatch.inference.engines import Outputs
from cvbatch.inference.instance_masks import encode_masks, has_class_axis, join_masks


def read_outputs(
    config: DetectionConfig,
    spec: ModelSpec,
    outputs: Outputs,  # boxes (K, N, 4), scores (K, N, C) or, with class_ids, (K, N), and masks
    image_index: np.ndarray,  # (K,) positions in the batch
    placements: Sequence[Placement],  # K
) -> ModelPredictions:
    """Suppress the candidates of each image and map the boxes to the original; best first.

    Boxes with class ids are not suppressed again.
    """
    settings = _nms_settings(config, spec)
    select = _best_boxes if "class_ids" in outputs else _suppressed
    parts, masks = [], []
    for i, placement in enumerate(placements):
        image = {name: array[i] for name, array in outputs.items()}
        xyxy, scores = _xyxy(config, spec, image["boxes"]), _scores(image, len(spec.classes))
        kept, class_id = select(xyxy, scores, settings)
        original = boxes_to_original(xyxy[kept], placement)
        parts.append((original, scores[kept, class_id], class_id))
        if config.masks is not None:
            masks.append(encode_masks(config.masks, image, kept, class_id, xyxy[kept], placement))
    boxes = join_boxes(parts, image_index)
    if config.masks is None:
        return ModelPredictions(boxes=boxes)
    return ModelPredictions(boxes=boxes, box_masks=join_masks(masks, placements, image_index))


def merge_tiles(
    config: DetectionConfig,
    spec: ModelSpec,
    tiles: Iterator[Outputs],  # T, each a batch of one
    placements: Sequence[Placement],  # T
    position: int,  # of the image in its batch
) -> ModelPredictions:
    """Map the boxes of all tiles to the original, clip them, and suppress them together.

    To save memory, tiles are processed one at a time and boxes below the score threshold are
    dropped at once. The result is the same, because these boxes neither remain nor suppress others.
    Masks of the others are encoded at once, which is smaller than the outputs of a tile.
    """
    settings = _nms_settings(config, spec)
    boxes, all_scores, masks = [], [], _TileMasks(config)
    for placement, outputs in zip(placements, tiles, strict=True):
        image = {name: array[0] for name, array in outputs.items()}
        tile_scores = _scores(image, len(spec.classes))
        candidates = _candidates(tile_scores, settings)
        rows = np.flatnonzero(candidates.any(axis=1))
        xyxy = _xyxy(config, spec, image["boxes"][rows])
        boxes.append(boxes_to_original(xyxy, placement))
        all_scores.append(tile_scores[rows])
        masks.add(image, rows, candidates[rows], xyxy, placement)
    xyxy, scores = np.concatenate(boxes), np.concatenate(all_scores)
    kept, class_id = _suppressed(xyxy, scores, settings)
    index = np.array([position], np.int64)
    part = (xyxy[kept], scores[kept, class_id], class_id)
    predictions = ModelPredictions(boxes=join_boxes([part], index))
    if config.masks is None:
        return predictions
    selected = [masks.select(kept, class_id)]
    return replace(predictions, box_masks=join_masks(selected, placements[:1], index))


class _TileMasks:
    """Encoded masks of the candidates of all tiles."""

    def __init__(self, config: DetectionConfig) -> None:
        self._kind = config.masks
        self._num_boxes = 0
        self._is_by_class = False
        self._masks: dict[tuple[int, int], bytes] = {}  # by box, and by class if there is one each

    def add(
        self,
        image: Outputs,
        rows: np.ndarray,  # (M,) of the boxes of the tile
        is_candidate: np.ndarray,  # (M, C) bool
        xyxy: np.ndarray,  # (M, 4) pixels of the network's input
        placement: Placement,
    ) -> None:
        """Encode the masks of a tile."""
        if self._kind is None:
            return
        self._is_by_class = has_class_axis(image)
        if not self._is_by_class:
            is_candidate = np.ones((len(rows), 1), bool)
        box, class_id = np.nonzero(is_candidate)
        encoded = encode_masks(self._kind, image, rows[box], class_id, xyxy[box], placement)
        keys = zip((box + self._num_boxes).tolist(), class_id.tolist(), strict=True)
        self._masks.update(zip(keys, encoded, strict=True))
        self._num_boxes += len(rows)

    def select(self, boxes: np.ndarray, class_id: np.ndarray) -> list[bytes]:  # (K,), (K,)
        """Return the masks of some boxes; `boxes` counts through all tiles."""
        classes = class_id if self._is_by_class else np.zeros_like(class_id)
        return [self._masks[key] for key in zip(boxes.tolist(), classes.tolist(), strict=True)]


def _scores(image: Outputs, num_classes: int) -> np.ndarray:  # (N, C) float32
    """Return a score for each class; −1 for all but the class id of a box that has one."""
    if "class_ids" not in image:
        return image["scores"]
    is_class = image["class_ids"][:, None] == np.arange(num_classes)
    dense: np.ndarray = np.where(is_class, image["scores"][:, None], np.float32(-1))
    return dense


def _suppressed(
    xyxy: np.ndarray,  # (N, 4)
    scores: np.ndarray,  # (N, C)
    settings: box_arrays.NmsSettings,
) -> tuple[np.ndarray, np.ndarray]:  # (K,) rows, (K,) class ids
    return box_arrays.non_max_suppression(xyxy, scores, **settings._asdict())


def _best_boxes(
    xyxy: np.ndarray,  # (N, 4)
    scores: np.ndarray,  # (N, C), −1 for all classes but one
    settings: box_arrays.NmsSettings,
) -> tuple[np.ndarray, np.ndarray]:  # (K,) rows, (K,) class ids
    """Return the boxes over the score threshold without suppression, best first."""
    class_id, score = scores.argmax(axis=1).astype(np.int32), scores.max(axis=1)
    kept = np.flatnonzero(_candidates(scores, settings).any(axis=1))
    kept = kept[np.argsort(-score[kept], kind="stable")][: settings.max_detections]
    return kept, class_id[kept]


def _candidates(
    scores: np.ndarray,  # (N, C)
    settings: box_arrays.NmsSettings,
) -> np.ndarray:  # (N, C) bool
    """Return which classes of which boxes reach the score threshold."""
    is_candidate: np.ndarray = scores >= np.float32(settings.score_threshold)
    if settings.classes_kept is not None:
        is_kept = np.zeros(scores.shape[1], bool)
        is_kept[list(settings.classes_kept)] = True
        is_candidate &= is_kept
    return is_candidate


def _xyxy(config: DetectionConfig, spec: ModelSpec, boxes: np.ndarray) -> np.ndarray:
    return box_arrays.to_xyxy(boxes, config.box_format, spec.input_height, spec.input_width)


def _nms_settings(config: DetectionConfig, spec: ModelSpec) -> box_arrays.NmsSettings:
    names = config.keep_classes
    return box_arrays.NmsSettings(
        config.score_threshold,
        config.iou_threshold,
        config.max_detections,
        config.class_agnostic,
        None if names is None else [spec.classes.index(name) for name in names],
    )
