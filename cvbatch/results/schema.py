"""The result's Parquet schema, and predictions as its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cvbatch.config.models import TASK_COLUMNS, ModelConfig
from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.types import (
    Boxes,
    Failure,
    Heatmaps,
    Labels,
    ModelPredictions,
    ModelSpec,
    Predictions,
    offsets_of,
    pictures_of,
)
from cvbatch.geometry.resize import make_placement, mask_to_original
from cvbatch.geometry.tiling import count_tiles
from cvbatch.images import masks as mask_arrays

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
_COMMON = [
    ("image_id", pa.string()),
    ("uri", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("status", pa.string()),
    ("error", _FAILURE),
]
COLUMN_TYPES: dict[str, pa.DataType] = {
    "labels": pa.list_(_LABEL),
    "boxes": pa.list_(_BOX),
    "mask": IMAGE,
    "mask_areas": pa.list_(_AREA),
    "heatmaps": pa.list_(_HEATMAP),
}


@dataclass(frozen=True)
class ResultModel:
    """A model of the job as the result knows it."""

    config: ModelConfig
    spec: ModelSpec

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns this model fills."""
        has_heatmaps = getattr(self.config, "heatmap", None) is not None
        return TASK_COLUMNS[self.config.task] + (("heatmaps",) if has_heatmaps else ())


def result_schema(models: Sequence[ResultModel]) -> pa.Schema:
    """Return the schema of a job's result: a column exists when a model of the job fills it."""
    filled = {column for model in models for column in model.columns}
    tasks = [(name, kind) for name, kind in COLUMN_TYPES.items() if name in filled]
    return pa.schema([*_COMMON, *tasks])


def result_metadata(models: Sequence[ResultModel], job_fingerprint: str, version: str) -> bytes:
    """Return the JSON under the file-level metadata key `cvbatch`."""
    described = [
        {
            "name": model.spec.name,
            "task": model.spec.task,
            "classes": list(model.spec.classes),
            "input_size": [model.spec.input_height, model.spec.input_width],
            "resize": model.spec.resize,
            "weights_sha256": model.spec.weights_sha256,
            "options": model.config.model_dump(
                mode="json",
                exclude={"task", "model", "weights", "classes", "image_size", "resize"},
                exclude_none=True,  # options of later versions leave the files as they were
            ),
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


def to_rows(
    predictions: Predictions, models: Sequence[ResultModel], schema: pa.Schema
) -> pa.Table:  # N rows
    """Return one row for every image of the batch, in its order.

    In a failed row all but `image_id`, `uri`, `status`, `error` and a known size is null.
    """
    is_failed = np.zeros(len(predictions), bool)
    is_failed[list(predictions.failures)] = True
    columns: dict[str, pa.Array] = _common_columns(predictions, is_failed)
    heatmaps = []
    for model, said in zip(models, predictions.models, strict=True):
        names = pa.array(model.spec.classes, pa.string())
        if "labels" in model.columns:
            columns["labels"] = _labels_column(said.labels, names, is_failed)
        if "boxes" in model.columns:
            columns["boxes"] = _boxes_column(said.boxes, names, is_failed)
        if "mask" in model.columns:
            columns |= _mask_columns(said, model, predictions, is_failed)
        if "heatmaps" in model.columns:
            heatmaps.append((model, said.heatmaps))
    if heatmaps:
        columns["heatmaps"] = _heatmaps_column(heatmaps, is_failed)
    return pa.table([columns[name] for name in schema.names], schema=schema)


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


def _labels_column(labels: Labels | None, names: pa.Array, is_failed: np.ndarray) -> pa.Array:
    if labels is None:  # no image of the batch could be decoded
        return pa.nulls(len(is_failed), COLUMN_TYPES["labels"])
    label = names.take(pa.array(labels.class_id))
    fields = {"class_id": labels.class_id, "label": label, "score": labels.score}
    return _lists(_struct(_LABEL, fields), labels.image_index, is_failed)


def _boxes_column(boxes: Boxes | None, names: pa.Array, is_failed: np.ndarray) -> pa.Array:
    if boxes is None:
        return pa.nulls(len(is_failed), COLUMN_TYPES["boxes"])
    sides = ("x_min", "y_min", "x_max", "y_max")
    fields: dict[str, Any] = {side: boxes.xyxy[:, i] for i, side in enumerate(sides)}
    fields["class_id"] = boxes.class_id
    fields["label"] = names.take(pa.array(boxes.class_id))
    fields["score"] = boxes.score
    return _lists(_struct(_BOX, fields), boxes.image_index, is_failed)


def _heatmaps_column(
    heatmaps: list[tuple[ResultModel, Heatmaps | None]], is_failed: np.ndarray
) -> pa.Array:
    """Return the heatmaps of all models: of each image first those of the job's first model."""
    parts, indices = [], []
    for model, maps in heatmaps:
        if maps is not None:
            parts.append(_heatmap_structs(model, maps))
            indices.append(maps.image_index)
    if not parts:
        return pa.nulls(len(is_failed), COLUMN_TYPES["heatmaps"])
    image_index = np.concatenate(indices)
    order = np.argsort(image_index, kind="stable")
    structs = pa.concat_arrays(parts).take(pa.array(order))
    return _lists(structs, image_index[order], is_failed)


def _heatmap_structs(model: ResultModel, maps: Heatmaps) -> pa.StructArray:
    count = len(maps.class_id)
    sizes = maps.height.astype(np.int64) * maps.width
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    values = pa.array(maps.values, pa.float32())
    fields = {
        "model": [model.spec.name] * count,
        "layer": [model.spec.heatmap_layer] * count,
        "class_id": maps.class_id,
        "label": pa.array(model.spec.classes, pa.string()).take(pa.array(maps.class_id)),
        "score": maps.score,
        "height": maps.height,
        "width": maps.width,
        "values": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values),
    }
    return _struct(_HEATMAP, fields)


def _mask_columns(
    said: ModelPredictions, model: ResultModel, predictions: Predictions, is_failed: np.ndarray
) -> dict[str, pa.Array]:
    """Return the masks as PNG and the area of every class that occurs."""
    if said.masks is None:
        return {
            name: pa.nulls(len(is_failed), COLUMN_TYPES[name]) for name in ("mask", "mask_areas")
        }
    png: list[bytes | None] = [None] * len(is_failed)
    class_ids, areas, counts = [], [], []
    is_original = getattr(model.config, "mask_size", "original") == "original"
    key, masks = model.spec.input_key, said.masks
    pictures = pictures_of(masks.class_id, masks.height, masks.width)
    for mask, i in zip(pictures, masks.image_index, strict=True):
        placed = mask
        size = int(predictions.height[i]), int(predictions.width[i])
        if is_original and count_tiles(*size, key) == 1:  # those of several are merged there
            placed = mask_to_original(mask, make_placement(*size, key))
        png[i] = mask_arrays.encode_png(placed)
        class_id, area = mask_arrays.areas(placed, len(model.spec.classes))
        class_ids.append(class_id)
        areas.append(area)
        counts.append(len(class_id))
    class_id = np.concatenate([np.zeros(0, np.int32), *class_ids]).astype(np.int32)
    fields = {
        "class_id": class_id,
        "label": pa.array(model.spec.classes, pa.string()).take(pa.array(class_id)),
        "area": np.concatenate([np.zeros(0, np.int64), *areas]).astype(np.int64),
    }
    image_index = np.repeat(said.masks.image_index, counts)
    stored = pa.array(png, pa.binary())
    paths = pa.nulls(len(is_failed), pa.string())
    return {
        "mask": pa.StructArray.from_arrays(
            [stored, paths], fields=list(IMAGE), mask=stored.is_null()
        ),
        "mask_areas": _lists(_struct(_AREA, fields), image_index, is_failed),
    }
