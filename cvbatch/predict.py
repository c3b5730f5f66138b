"""All the job's models in one object: a batch of images in, what every model said of it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cvbatch.arrays.pixels import Placement, place
from cvbatch.config import ModelConfig
from cvbatch.engines import Program
from cvbatch.tasks.classification import read_heatmaps, read_labels
from cvbatch.tasks.detection import read_boxes, read_single_boxes
from cvbatch.types import (
    Failure,
    ImageBatch,
    InputKey,
    Masks,
    ModelPredictions,
    ModelSpec,
    Predictions,
)

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
        outputs = [_run(model, batch.pixels[model.spec.input_key]) for model in self._models]
        is_finite = np.ones(len(decoded), bool)
        failures = dict(batch.failures)
        for model, results in zip(self._models, outputs, strict=True):
            is_model_finite = _finite_images(results, len(decoded))
            for position in decoded[is_finite & ~is_model_finite]:
                failures[int(position)] = _not_finite(model.spec)
            is_finite &= is_model_finite
        predictions = [
            _read(model, _select(results, is_finite), batch, decoded[is_finite])
            for model, results in zip(self._models, outputs, strict=True)
        ]
        return Predictions(
            chunk_id=batch.chunk_id,
            image_id=batch.image_id,
            uri=batch.uri,
            width=batch.width,
            height=batch.height,
            failures=failures,
            models=tuple(predictions),
        )


def _run(
    model: LoadedModel,
    pixels: np.ndarray,  # (K, H, W, 3) uint8
) -> Outputs:
    """Return the program's results for K images, in full batches, the last one padded."""
    size = model.batch_size
    parts = []
    for start in range(0, len(pixels), size):
        part = pixels[start : start + size]
        num_images = len(part)
        if num_images < size:
            part = np.concatenate([part, np.zeros((size - num_images, *part.shape[1:]), np.uint8)])
        results = model.program(np.ascontiguousarray(part))
        parts.append({name: array[:num_images] for name, array in results.items()})
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return {}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


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
    placements = [place(int(batch.height[i]), int(batch.width[i]), key) for i in image_index]
    where = _Where(image_index, placements, key)
    return _READERS[model.config.task](model, results, where)


def _classification(model: LoadedModel, results: Outputs, where: _Where) -> ModelPredictions:
    config: Any = model.config
    is_multi_label = getattr(config, "multi_label", False)
    labels = read_labels(
        results["scores"],
        where.image_index,
        top_k=config.top_k,
        score_threshold=config.score_threshold if is_multi_label else None,
    )
    if config.heatmap is None:
        return ModelPredictions(labels=labels)
    heatmaps = read_heatmaps(
        results["heatmaps"], results["heatmap_classes"], results["scores"], where.image_index
    )
    return ModelPredictions(labels=labels, heatmaps=heatmaps)


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
    return ModelPredictions(masks=Masks(results["mask"], where.image_index))


def _detection(model: LoadedModel, results: Outputs, where: _Where) -> ModelPredictions:
    config: Any = model.config
    kept = config.keep_classes
    boxes = read_boxes(
        results["boxes"],
        results["scores"],
        where.image_index,
        where.placements,
        where.key,
        box_format=config.box_format,
        score_threshold=config.score_threshold,
        iou_threshold=config.iou_threshold,
        max_detections=config.max_detections,
        class_agnostic=config.class_agnostic,
        classes_kept=None if kept is None else [model.spec.classes.index(name) for name in kept],
    )
    return ModelPredictions(boxes=boxes)


_READERS: dict[str, Callable[[LoadedModel, Outputs, _Where], ModelPredictions]] = {
    "classification": _classification,
    "segmentation": _segmentation,
    "detection": _detection,
    "localization": _localization,
}
