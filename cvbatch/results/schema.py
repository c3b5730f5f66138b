"""Parquet schema of results, and rows of predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cvbatch.config.models import ModelConfig
from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.tasks import TASKS
from cvbatch.core.types import (
    Failure,
    Heatmaps,
    ModelPredictions,
    ModelSpec,
    Predictions,
    offsets_of,
)
from cvbatch.images.masks import largest_first

_FAILURE = pa.struct([("stage", pa.string()), ("kind", pa.string()), ("message", pa.string())])
_LABEL = pa.struct([("class_id", pa.int32()), ("label", pa.string()), ("score", pa.float32())])
_BOX = pa.struct(
    [
        ("x_min", pa.float32()),
        ("y_min", pa.float32()),
        ("x_max", pa.float32()),
        ("y_max", pa.float32()),
        ("class_id", pa.int32()),
        ("label", pa.string()),
        ("score", pa.float32()),
    ]
)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_AREA = pa.struct([("class_id", pa.int32()), ("label", pa.string()), ("area", pa.int64())])
_HEATMAP = pa.struct(
    [
        ("model", pa.string()),
        ("layer", pa.string()),
        ("class_id", pa.int32()),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("values", pa.list_(pa.float32())),
    ]
)
# COCO's compressed RLE, as pycocotools.mask reads it
_RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
_COMMON = [
    ("image_id", pa.string()),
    ("uri", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("status", pa.string()),
    ("error", _FAILURE),
]


@dataclass(frozen=True)
class ResultModel:
    """A model of the job, as the result describes it."""

    config: ModelConfig
    spec: ModelSpec

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns this model fills."""
        requested = [
            column
            for key, column in (("heatmap", "heatmaps"), ("masks", "box_masks"))
            if getattr(self.config, key, None) is not None
        ]
        return (*TASKS[self.config.task].columns, *requested)


def result_metadata(models: Sequence[ResultModel], job_fingerprint: str, version: str) -> bytes:
    """Return the JSON under the file-level metadata key `cvbatch`."""
    described = [
        {
            "name": model.spec.name,
            "task": model.spec.task,
            "classes": list(model.spec.classes),
            "input_size": [model.spec.input_height, model.spec.input_width],
            "resize": model.spec.resize,
            **({} if model.spec.fraction is None else {"fraction": model.spec.fraction}),
            "weights_sha256": model.spec.weights_sha256,
            "options": model.config.model_dump(
                mode="json",
                exclude={"task", "model", "weights", "classes", "image_size", "resize"},
                exclude_none=True,  # new optional settings do not change the metadata of old jobs
            ),
            **({"dimension": model.spec.dimension} if model.spec.dimension else {}),
        }
        for model in models
    ]
    document = {
        "schema_version": SCHEMA_VERSION,
        "cvbatch_version": version,
        "box_format": "half-open xyxy, pixels of the upright original",
        "fingerprint": job_fingerprint,
        "models": described,
    }
    return json.dumps(document, sort_keys=True, ensure_ascii=False).encode()


def _common_columns(predictions: Predictions, is_failed: np.ndarray) -> dict[str, pa.Array]:
    failures = [predictions.failures.get(i) for i in range(len(predictions))]
    return {
        "image_id": pa.array(predictions.image_id, pa.string()),
        "uri": pa.array(predictions.uri, pa.string()),
        "width": pa.array(predictions.width, pa.int32(), mask=predictions.width == 0),
        "height": pa.array(predictions.height, pa.int32(), mask=predictions.height == 0),
        "status": pa.array(np.where(is_failed, "failed", "ok"), pa.string()),
        "error": pa.array([_failure_row(failure) for failure in failures], _FAILURE),
    }


def _failure_row(failure: Failure | None) -> dict[str, str] | None:
    if failure is None:
        return None
    return {"stage": failure.stage, "kind": failure.kind, "message": failure.message}


def _lists(
    structs: pa.StructArray,  # M
    image_index: np.ndarray,  # (M,)
    is_failed: np.ndarray,  # (N,)
) -> pa.ListArray:  # N
    offsets = pa.array(offsets_of(image_index, len(is_failed)), pa.int32())
    return pa.ListArray.from_arrays(offsets, structs, mask=pa.array(is_failed))


def _struct(kind: pa.StructType, fields: Mapping[str, Any]) -> pa.StructArray:
    arrays = [pa.array(fields[field.name], field.type) for field in kind]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _named(names: Sequence[str], class_id: np.ndarray) -> pa.Array:  # (M,) → M strings
    return pa.array(names, pa.string()).take(pa.array(class_id))


# Models of a job that predict the same kind, each with its predictions for a batch.
_Filled = Sequence[tuple[ResultModel, ModelPredictions]]


def _labels_columns(
    filled: _Filled, batch: Predictions, is_failed: np.ndarray
) -> dict[str, pa.Array]:
    ((model, predictions),) = filled
    labels = predictions.labels
    if labels is None:  # no image of the batch could be decoded
        return {}
    fields = {
        "class_id": labels.class_id,
        "label": _named(model.spec.classes, labels.class_id),
        "score": labels.score,
    }
    return {"labels": _lists(_struct(_LABEL, fields), labels.image_index, is_failed)}


def _boxes_columns(
    filled: _Filled, batch: Predictions, is_failed: np.ndarray
) -> dict[str, pa.Array]:
    ((model, predictions),) = filled
    boxes = predictions.boxes
    if boxes is None:
        return {}
    sides = ("x_min", "y_min", "x_max", "y_max")
    fields: dict[str, Any] = {side: boxes.xyxy[:, i] for i, side in enumerate(sides)}
    fields["class_id"] = boxes.class_id
    fields["label"] = _named(model.spec.classes, boxes.class_id)
    fields["score"] = boxes.score
    return {"boxes": _lists(_struct(_BOX, fields), boxes.image_index, is_failed)}


def _box_masks_columns(
    filled: _Filled, batch: Predictions, is_failed: np.ndarray
) -> dict[str, pa.Array]:
    """Return one mask for each of `boxes`, in their order."""
    ((_, predictions),) = filled
    masks = predictions.box_masks
    if masks is None:
        return {}
    offsets = np.concatenate([[0], np.cumsum(masks.length)]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(masks.counts))]
    sides = np.stack([masks.height, masks.width], axis=1).reshape(-1).astype(np.int32)
    every_second = np.arange(0, len(sides) + 1, 2, dtype=np.int32)
    fields = {
        "size": pa.ListArray.from_arrays(pa.array(every_second), pa.array(sides)),
        "counts": pa.Array.from_buffers(pa.string(), len(masks.length), buffers),
    }
    return {"box_masks": _lists(_struct(_RLE, fields), masks.image_index, is_failed)}


def _heatmaps_columns(
    filled: _Filled, batch: Predictions, is_failed: np.ndarray
) -> dict[str, pa.Array]:
    """Return the heatmaps of all models: of each image first those of the job's first model."""
    maps = [(model, p.heatmaps) for model, p in filled if p.heatmaps is not None]
    if not maps:
        return {}
    image_index = np.concatenate([heatmaps.image_index for _, heatmaps in maps])
    order = np.argsort(image_index, kind="stable")
    structs = pa.concat_arrays([_heatmap_structs(model, heatmaps) for model, heatmaps in maps])
    return {"heatmaps": _lists(structs.take(pa.array(order)), image_index[order], is_failed)}


def _heatmap_structs(model: ResultModel, maps: Heatmaps) -> pa.StructArray:
    count = len(maps.class_id)
    sizes = maps.height.astype(np.int64) * maps.width
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    values = pa.array(maps.values, pa.float32())
    fields = {
        "model": [model.spec.name] * count,
        "layer": [model.spec.heatmap_layer] * count,
        "class_id": maps.class_id,
        "label": _named(model.spec.classes, maps.class_id),
        "score": maps.score,
        "height": maps.height,
        "width": maps.width,
        "values": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values),
    }
    return _struct(_HEATMAP, fields)


def _mask_columns(
    filled: _Filled, batch: Predictions, is_failed: np.ndarray
) -> dict[str, pa.Array]:
    """Return the masks as PNG and the area of every class that occurs."""
    ((model, predictions),) = filled
    masks = predictions.masks
    if masks is None:
        return {}
    png: list[bytes | None] = [None] * len(is_failed)
    class_ids, areas, counts = [], [], []
    files = np.split(masks.png, np.cumsum(masks.num_bytes)[:-1])
    for file, image_area, i in zip(files, masks.area, masks.image_index, strict=True):
        png[i] = file.tobytes()
        class_id, area = largest_first(image_area)
        class_ids.append(class_id)
        areas.append(area)
        counts.append(len(class_id))
    class_id = np.concatenate([np.zeros(0, np.int32), *class_ids]).astype(np.int32)
    fields = {
        "class_id": class_id,
        "label": _named(model.spec.classes, class_id),
        "area": np.concatenate([np.zeros(0, np.int64), *areas]).astype(np.int64),
    }
    image_index = np.repeat(masks.image_index, counts)
    stored = pa.array(png, pa.binary())
    paths = pa.nulls(len(is_failed), pa.string())
    return {
        "mask": pa.StructArray.from_arrays(
            [stored, paths], fields=list(IMAGE), mask=stored.is_null()
        ),
        "mask_areas": _lists(_struct(_AREA, fields), image_index, is_failed),
    }


def _vector_columns(
    column: str, filled: _Filled, batch: Predictions, is_failed: np.ndarray
) -> dict[str, pa.Array]:
    """Return the vectors of one model as lists of a fixed size."""
    ((model, predictions),) = filled
    vectors = getattr(predictions, column)
    if vectors is None:
        return {}
    values = np.zeros((len(is_failed), model.spec.dimension), np.float32)
    values[vectors.image_index] = vectors.values
    stored = pa.FixedSizeListArray.from_arrays(
        pa.array(values.reshape(-1)), model.spec.dimension, mask=pa.array(is_failed)
    )
    return {column: stored}


class PredictionKind(NamedTuple):
    """How predictions of one kind are stored.

    Attributes:
        types: column → Parquet type of the columns that the kind has; the size of vectors is that
            of the model.
        write: function of (models with their predictions, batch, is_failed (N,)) that returns the
            columns for N images, or no columns if no image of the batch has predictions.
    """

    types: dict[str, pa.DataType]
    write: Callable[[_Filled, Predictions, np.ndarray], dict[str, pa.Array]]


# Field of ModelPredictions → its columns, in the order of the Parquet schema.
PREDICTION_KINDS: dict[str, PredictionKind] = {
    "labels": PredictionKind({"labels": pa.list_(_LABEL)}, _labels_columns),
    "boxes": PredictionKind({"boxes": pa.list_(_BOX)}, _boxes_columns),
    "box_masks": PredictionKind({"box_masks": pa.list_(_RLE)}, _box_masks_columns),
    "masks": PredictionKind({"mask": IMAGE, "mask_areas": pa.list_(_AREA)}, _mask_columns),
    "heatmaps": PredictionKind({"heatmaps": pa.list_(_HEATMAP)}, _heatmaps_columns),
    **{
        name: PredictionKind({name: pa.list_(pa.float32())}, partial(_vector_columns, name))
        for name in ("embedding", "values")
    },
}
COLUMN_TYPES: dict[str, pa.DataType] = {
    column: kind for stored in PREDICTION_KINDS.values() for column, kind in stored.types.items()
}


RESERVED_NAMES = frozenset([name for name, _ in _COMMON] + list(COLUMN_TYPES))


def result_schema(models: Sequence[ResultModel], kept: Sequence[pa.Field] = ()) -> pa.Schema:
    """Return the schema of a job's result: a column exists when a model of the job fills it.

    Args:
        models: Of the job.
        kept: Columns of the source that follow those of the models.
    """
    filled = {column: model.spec.dimension for model in models for column in model.columns}
    tasks = [
        (name, pa.list_(pa.float32(), filled[name]) if filled[name] else kind)
        for name, kind in COLUMN_TYPES.items()
        if name in filled
    ]
    return pa.schema([*_COMMON, *tasks, *kept])


def to_rows(
    predictions: Predictions, models: Sequence[ResultModel], schema: pa.Schema
) -> pa.Table:  # N rows
    """Return one row per image of the batch, in its order.

    In a failed row all but `image_id`, `uri`, `status`, `error` and a known size is null.
    """
    is_failed = np.zeros(len(predictions), bool)
    is_failed[list(predictions.failures)] = True
    columns: dict[str, pa.Array] = _common_columns(predictions, is_failed)
    by_model = list(zip(models, predictions.models, strict=True))
    for kind in PREDICTION_KINDS.values():
        filled = [pair for pair in by_model if not kind.types.keys().isdisjoint(pair[0].columns)]
        if filled:
            types = {name: schema.field(name).type for name in kind.types}
            columns |= {name: pa.nulls(len(is_failed), type_) for name, type_ in types.items()}
            columns |= kind.write(filled, predictions, is_failed)
    return pa.table([columns[name] for name in schema.names], schema=schema)
