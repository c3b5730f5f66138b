"""All the job's models in one object: a batch of images in, what every model said of it out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import numpy as np

from cvbatch.config.models import ModelConfig
from cvbatch.core.types import (
    Failure,
    ImageBatch,
    InputKey,
    Labels,
    ModelPredictions,
    ModelSpec,
    Predictions,
)
from cvbatch.geometry.boxes import Suppression
from cvbatch.geometry.resize import Placement, make_placement
from cvbatch.geometry.tiling import tile_placements
from cvbatch.inference.engines import Program
from cvbatch.inference.postprocess_classification import (
    merge_heatmaps,
    merge_scores,
    read_heatmaps,
    read_labels,
)
from cvbatch.inference.postprocess_detection import merge_boxes, read_boxes, read_single_boxes
from cvbatch.inference.postprocess_segmentation import merge_masks, read_masks

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class LoadedModel:
    """A model of the job as a worker holds it."""

    config: ModelConfig
    spec: ModelSpec
    program: Program
    batch_size: int


@dataclass(frozen=True)
class _Where:
    """The images that the rows of a model's outputs are of."""

    image_index: np.ndarray  # (K,) positions in the batch
    placements: list[Placement]  # K
    key: InputKey


@dataclass(frozen=True)
class _Seen:
    """What one model computed for the K decoded images of a batch."""

    is_finite: np.ndarray  # (K,) bool
    read: Callable[[np.ndarray], ModelPredictions]  # of the images kept: (K,) bool


class _NotFiniteError(Exception):
    """A number that was computed for a tile is not finite: its image fails."""


class Predictor:
    """Runs all models over a batch. A plain callable: the same in a test and inside an actor."""

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        self._models = tuple(models)

    def __call__(self, batch: ImageBatch) -> Predictions:
        """Return every model's predictions.

        An image for which a model gives a score or box that is not finite becomes a failure
        (stage predict, kind not_finite): a ranking with NaN in it means nothing.
        """
        decoded = batch.decoded
        seen = [_see(model, batch) for model in self._models]
        is_finite = np.ones(len(decoded), bool)
        failures = dict(batch.failures)
        for model, one in zip(self._models, seen, strict=True):
            for position in decoded[is_finite & ~one.is_finite]:
                failures[int(position)] = _not_finite(model.spec)
            is_finite &= one.is_finite
        predictions = [one.read(is_finite) for one in seen]
        return Predictions(
            chunk_id=batch.chunk_id,
            image_id=batch.image_id,
            uri=batch.uri,
            width=batch.width,
            height=batch.height,
            failures=failures,
            models=tuple(predictions),
        )


def _see(model: LoadedModel, batch: ImageBatch) -> _Seen:
    if model.spec.input_key.tiling is not None:
        return _see_tiles(model, batch)
    decoded = batch.decoded
    results = _run(model, batch.pixels[model.spec.input_key])

    def read(is_kept: np.ndarray) -> ModelPredictions:
        return _read(model, _select(results, is_kept), batch, decoded[is_kept])

    return _Seen(_finite_images(results, len(decoded)), read)


def _see_tiles(model: LoadedModel, batch: ImageBatch) -> _Seen:
    """Run the tiles of all images as one row of them; read each image when it is complete.

    So what a program gives for tiles, which may be far more than their pixels, is held for one of
    its batches and never for all tiles of an image.
    """
    key = model.spec.input_key
    tiles = _tiles(model, batch.pixels[key])
    said: list[ModelPredictions | None] = []  # None: not finite
    for i in batch.decoded:
        size = int(batch.height[i]), int(batch.width[i])
        placements = tile_placements(*size, key)
        of_image = islice(tiles, len(placements))
        try:
            if len(placements) == 1:
                where = _Where(np.array([i], np.int64), placements, key)
                said.append(_READERS[model.config.task](model, next(_finite(of_image)), where))
            else:
                merge = _MERGERS[model.config.task]
                said.append(merge(model, _finite(of_image), placements, int(i)))
        except _NotFiniteError:
            said.append(None)
            deque(of_image, maxlen=0)  # the next image's tiles follow them
    is_finite = np.array([one is not None for one in said], bool)

    def read(is_kept: np.ndarray) -> ModelPredictions:
        return _joined([one for one, kept in zip(said, is_kept, strict=True) if kept and one])

    return _Seen(is_finite, read)


def _finite(tiles: Iterator[Outputs]) -> Iterator[Outputs]:
    for results in tiles:
        if not _finite_images(results, 1).all():
            raise _NotFiniteError
        yield results


def _joined(parts: Sequence[ModelPredictions]) -> ModelPredictions:
    """Return the predictions of several images as one, in their order."""
    kinds: dict[str, Any] = {}
    for kind in fields(ModelPredictions):
        values = [value for part in parts if (value := getattr(part, kind.name)) is not None]
        if values:
            columns = [
                np.concatenate([getattr(value, column.name) for value in values])
                for column in fields(values[0])
            ]
            kinds[kind.name] = type(values[0])(*columns)
    return ModelPredictions(**kinds)


def _run(
    model: LoadedModel,
    pixels: np.ndarray,  # (K, H, W, 3) uint8
) -> Outputs:
    """Return the program's results for K images."""
    parts = list(_batches(model, pixels))
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return {}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _tiles(
    model: LoadedModel,
    pixels: np.ndarray,  # (T, H, W, 3) uint8
) -> Iterator[Outputs]:
    """Yield the program's results for each tile, as those of a batch of one.

    They are copies: one tile that is held does not hold its whole batch.
    """
    for part in _batches(model, pixels):
        for row in range(len(next(iter(part.values())))):
            yield {name: array[row : row + 1].copy() for name, array in part.items()}
        part.clear()  # gone before the program makes the next


def _batches(
    model: LoadedModel,
    pixels: np.ndarray,  # (K, H, W, 3) uint8
) -> Iterator[Outputs]:
    """Yield the program's results, full batches of its size; the padding of the last left out."""
    size = model.batch_size
    for start in range(0, len(pixels), size):
        part = pixels[start : start + size]
        num_images = len(part)
        if num_images < size:
            part = np.concatenate([part, np.zeros((size - num_images, *part.shape[1:]), np.uint8)])
        results = model.program(np.ascontiguousarray(part))
        yield {name: array[:num_images] for name, array in results.items()}
        del results


def _finite_images(results: Outputs, num_images: int) -> np.ndarray:  # (K,) bool
    """Say for each image whether every number that was computed for it is finite."""
    is_finite = np.ones(num_images, bool)
    for array in results.values():
        if array.dtype.kind == "f":
            is_finite &= np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    return is_finite


def _not_finite(spec: ModelSpec) -> Failure:
    message = f"model {spec.name} gave a number that is not finite for this image"
    return Failure("predict", "not_finite", message)


def _select(results: Outputs, is_kept: np.ndarray) -> Outputs:
    if is_kept.all():
        return results
    return {name: array[is_kept] for name, array in results.items()}


def _read(
    model: LoadedModel, results: Outputs, batch: ImageBatch, image_index: np.ndarray
) -> ModelPredictions:
    if not len(image_index):
        return ModelPredictions()
    key = model.spec.input_key
    placements = [
        make_placement(int(batch.height[i]), int(batch.width[i]), key) for i in image_index
    ]
    where = _Where(image_index, placements, key)
    return _READERS[model.config.task](model, results, where)


def _classification(model: LoadedModel, results: Outputs, where: _Where) -> ModelPredictions:
    config: Any = model.config
    labels = _labels(model, results["scores"], where.image_index)
    if config.heatmap is None:
        return ModelPredictions(labels=labels)
    heatmaps = read_heatmaps(
        results["heatmaps"], results["heatmap_classes"], results["scores"], where.image_index
    )
    return ModelPredictions(labels=labels, heatmaps=heatmaps)


def _labels(
    model: LoadedModel,
    scores: np.ndarray,  # (K, C)
    image_index: np.ndarray,  # (K,)
) -> Labels:
    config: Any = model.config
    is_multi_label = getattr(config, "multi_label", False)
    threshold = config.score_threshold if is_multi_label else None
    return read_labels(scores, image_index, top_k=config.top_k, score_threshold=threshold)


def _localization(model: LoadedModel, results: Outputs, where: _Where) -> ModelPredictions:
    config: Any = model.config
    said = _classification(model, results, where)
    boxes = read_single_boxes(
        results["box"],
        results["scores"],
        where.image_index,
        where.placements,
        where.key,
        box_format=config.box_format,
    )
    return ModelPredictions(labels=said.labels, boxes=boxes, heatmaps=said.heatmaps)


def _segmentation(model: LoadedModel, results: Outputs, where: _Where) -> ModelPredictions:
    return ModelPredictions(masks=read_masks(results["mask"], where.image_index))


def _detection(model: LoadedModel, results: Outputs, where: _Where) -> ModelPredictions:
    boxes = read_boxes(
        results["boxes"],
        results["scores"],
        where.image_index,
        where.placements,
        where.key,
        *_reading(model),
    )
    return ModelPredictions(boxes=boxes)


def _reading(model: LoadedModel) -> tuple[str, Suppression]:
    """Return the format of a detector's boxes, and which of them stand."""
    config: Any = model.config
    kept = config.keep_classes
    rule = Suppression(
        config.score_threshold,
        config.iou_threshold,
        config.max_detections,
        config.class_agnostic,
        None if kept is None else [model.spec.classes.index(n) for n in kept],
    )
    return config.box_format, rule


def _merged_classification(
    model: LoadedModel, tiles: Iterator[Outputs], placements: list[Placement], position: int
) -> ModelPredictions:
    config: Any = model.config
    rows = list(tiles)
    stacked = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    labels = _labels(model, merge_scores(stacked["scores"]), np.array([position], np.int64))
    if config.heatmap is None:
        return ModelPredictions(labels=labels)
    heatmaps = merge_heatmaps(
        stacked["heatmaps"], stacked["heatmap_classes"], stacked["scores"], placements, position
    )
    return ModelPredictions(labels=labels, heatmaps=heatmaps)


def _merged_segmentation(
    model: LoadedModel, tiles: Iterator[Outputs], placements: list[Placement], position: int
) -> ModelPredictions:
    probabilities = (row["probabilities"][0] for row in tiles)
    return ModelPredictions(masks=merge_masks(probabilities, position, placements))


def _merged_detection(
    model: LoadedModel, tiles: Iterator[Outputs], placements: list[Placement], position: int
) -> ModelPredictions:
    candidates = ((row["boxes"][0], row["scores"][0]) for row in tiles)
    key = model.spec.input_key
    boxes = merge_boxes(candidates, position, placements, key, *_reading(model))
    return ModelPredictions(boxes=boxes)


_READERS: dict[str, Callable[[LoadedModel, Outputs, _Where], ModelPredictions]] = {
    "classification": _classification,
    "segmentation": _segmentation,
    "detection": _detection,
    "localization": _localization,
}
# Of an image that was cut: its tiles' results one at a time, each as a batch of one.
_MERGERS: dict[
    str, Callable[[LoadedModel, Iterator[Outputs], list[Placement], int], ModelPredictions]
] = {
    "classification": _merged_classification,
    "segmentation": _merged_segmentation,
    "detection": _merged_detection,
}
