"""Predictor: runs all models of a job on a batch of images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import compress, islice
from typing import Any

import numpy as np

from cvbatch.config.model_outputs import shared_networks
from cvbatch.config.models import ModelConfig
from cvbatch.core.types import (
    Failure,
    ImageBatch,
    InputKey,
    ModelPredictions,
    ModelSpec,
    Predictions,
)
from cvbatch.geometry.resize import make_placement
from cvbatch.geometry.tiling import tile_placements
from cvbatch.inference.engines import Outputs, Program
from cvbatch.inference.postprocess import POSTPROCESSORS
from cvbatch.inference.programs import BuiltProgram


@dataclass(frozen=True)
class LoadedModel:
    """A model of the job, loaded in a worker.

    Attributes:
        config: section of the job file.
        spec: of the section.
        program: models with the same network share one, which runs once for a batch.
        batch_size: of the program.
        prefix: how the names of the model's outputs of the program begin.
    """

    config: ModelConfig
    spec: ModelSpec
    program: Program
    batch_size: int
    prefix: str = ""


def load_models(
    models: Sequence[ModelConfig], programs: Iterable[BuiltProgram], threads: int
) -> list[LoadedModel]:
    """Load the programs of a job one by one; return its models in the order of the job."""
    loaded: dict[int, LoadedModel] = {}
    for positions, built in zip(shared_networks(models), programs, strict=True):
        program = built.load(threads)
        for position, output, prefix in zip(positions, built.outputs, built.prefixes, strict=True):
            loaded[position] = LoadedModel(
                models[position], output.spec, program, built.batch_size, prefix
            )
    return [loaded[position] for position in range(len(models))]


@dataclass(frozen=True)
class _Computed:
    """The outputs of one model for the K decoded images of a batch.

    Attributes:
        is_finite: whether all outputs of an image are finite.
        read: function of a mask (K,) bool that returns the predictions of the selected images.
    """

    is_finite: np.ndarray  # (K,) bool
    read: Callable[[np.ndarray], ModelPredictions]


class _NotFiniteError(Exception):
    """An output of a tile is NaN or infinite, so its image fails."""


class Predictor:
    """Callable that runs all models of a job on a batch of images; it does not depend on Ray."""

    def __init__(self, models: Sequence[LoadedModel]) -> None:
        self._models = tuple(models)

    def __call__(self, batch: ImageBatch) -> Predictions:
        """Return the predictions of every model.

        If an output of any model is NaN or infinite, the image becomes a failure of all models
        (stage predict, kind not_finite), because NaN cannot be ranked.
        """
        decoded = batch.decoded
        computed = self._compute(batch)
        is_finite = np.ones(len(decoded), bool)
        failures = dict(batch.failures)
        for model, outputs in zip(self._models, computed, strict=True):
            for position in decoded[is_finite & ~outputs.is_finite]:
                failures[int(position)] = _not_finite(model.spec)
            is_finite &= outputs.is_finite
        return Predictions(
            chunk_id=batch.chunk_id,
            image_id=batch.image_id,
            uri=batch.uri,
            width=batch.width,
            height=batch.height,
            failures=failures,
            models=tuple(outputs.read(is_finite) for outputs in computed),
        )

    def _compute(self, batch: ImageBatch) -> list[_Computed]:
        """Return the outputs of every model; a program without tiles runs once."""
        outputs: dict[tuple[int, InputKey], Outputs] = {}  # by id of the program
        computed = []
        for model in self._models:
            if model.spec.input_key.tiling is not None:
                computed.append(_compute_tiles(model, batch))
                continue
            key = id(model.program), model.spec.input_key
            if key not in outputs:
                outputs[key] = _run(model, batch.pixels[model.spec.input_key])
            computed.append(_computed(model, batch, outputs[key]))
        return computed


def _computed(model: LoadedModel, batch: ImageBatch, all_outputs: Outputs) -> _Computed:
    decoded = batch.decoded
    outputs = {
        name.removeprefix(model.prefix): array
        for name, array in all_outputs.items()
        if name.startswith(model.prefix)
    }

    def read(is_finite: np.ndarray) -> ModelPredictions:
        return _read(model, _select(outputs, is_finite), batch, decoded[is_finite])

    return _Computed(_valid_images(model.spec, outputs, len(decoded)), read)


def _compute_tiles(model: LoadedModel, batch: ImageBatch) -> _Computed:
    """Run the tiles of all images as one sequence; post-process each image when it is complete.

    Outputs of tiles may be far larger than their pixels. Therefore they are in memory for one batch
    of the program, and never for all tiles of an image.
    """
    key = model.spec.input_key
    postprocessor = POSTPROCESSORS[model.config.task]
    tiles = _tiles(model, batch.pixels[key])
    predictions: list[ModelPredictions | None] = []  # None: an output is not finite
    for i in batch.decoded:
        placements = tile_placements(int(batch.height[i]), int(batch.width[i]), key)
        image_tiles = islice(tiles, len(placements))
        checked = _check_finite(model.spec, image_tiles)
        args = (model.config, model.spec)
        try:
            if len(placements) == 1:
                index = np.array([i], np.int64)
                predictions.append(postprocessor.read(*args, next(checked), index, placements))
            else:
                predictions.append(postprocessor.merge(*args, checked, placements, int(i)))
        except _NotFiniteError:
            predictions.append(None)
            deque(image_tiles, maxlen=0)  # skip to the tiles of the next image
    is_finite = np.array([prediction is not None for prediction in predictions], bool)

    def read(is_selected: np.ndarray) -> ModelPredictions:
        return _concatenate([p for p in compress(predictions, is_selected) if p])

    return _Computed(is_finite, read)


def _check_finite(spec: ModelSpec, tiles: Iterator[Outputs]) -> Iterator[Outputs]:
    for outputs in tiles:
        if not _valid_images(spec, outputs, 1).all():
            raise _NotFiniteError
        yield outputs


def _concatenate(parts: Sequence[ModelPredictions]) -> ModelPredictions:
    """Concatenate the predictions of several images, in their order."""
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
    """Return the program's outputs for K images."""
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
    """Yield the program's outputs of each tile as a batch of one.

    They are copies, because a view would keep the outputs of the whole batch in memory.
    """
    for part in _batches(model, pixels):
        for row in range(len(next(iter(part.values())))):
            yield {name: array[row : row + 1].copy() for name, array in part.items()}
        part.clear()  # free the outputs before the program computes the next batch


def _batches(
    model: LoadedModel,
    pixels: np.ndarray,  # (K, H, W, 3) uint8
) -> Iterator[Outputs]:
    """Yield the program's outputs batch by batch; the last batch is padded, its padding removed."""
    size = model.batch_size
    for start in range(0, len(pixels), size):
        part = pixels[start : start + size]
        num_images = len(part)
        if num_images < size:
            part = np.concatenate([part, np.zeros((size - num_images, *part.shape[1:]), np.uint8)])
        outputs = model.program(np.ascontiguousarray(part))
        yield {name: array[:num_images] for name, array in outputs.items()}
        del outputs


def _valid_images(spec: ModelSpec, outputs: Outputs, num_images: int) -> np.ndarray:  # (K,) bool
    """Return for each image whether all outputs are finite, and boxes have known classes."""
    is_finite = np.ones(num_images, bool)
    for array in outputs.values():
        if array.dtype.kind == "f":
            is_finite &= np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if "class_ids" in outputs:
        class_ids = outputs["class_ids"]
        is_known = (class_ids >= 0) & (class_ids < len(spec.classes))
        is_finite &= (is_known | ~(outputs["scores"] > 0)).all(axis=1)
    return is_finite


def _not_finite(spec: ModelSpec) -> Failure:
    message = f"model {spec.name} gave a number that is not finite for this image"
    if spec.task == "detection":
        message += ", or a class id without a name"
    return Failure("predict", "not_finite", message)


def _select(outputs: Outputs, is_selected: np.ndarray) -> Outputs:
    if is_selected.all():
        return outputs
    return {name: array[is_selected] for name, array in outputs.items()}


def _read(
    model: LoadedModel, outputs: Outputs, batch: ImageBatch, image_index: np.ndarray
) -> ModelPredictions:
    if not len(image_index):
        return ModelPredictions()
    placements = [
        make_placement(int(batch.height[i]), int(batch.width[i]), model.spec.input_key)
        for i in image_index
    ]
    read = POSTPROCESSORS[model.config.task].read
    return read(model.config, model.spec, outputs, image_index, placements)
