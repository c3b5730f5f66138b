"""Parquet schema of results, and rows of predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cvbatch.config.models import ModelConfig
from cvbatch.config.predict import SCHEMA_VERSION
from cvbatch.core.tasks import TASKS
from cvbatch.core.types import (
    Boxes,
    BoxMasks,
    Heatmaps,
    Labels,
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
    failures = (predictions.failures.get(i) for i in range(len(predictions)))
    return {
        "image_id": pa.array(predictions.image_id, pa.string()),
        "uri": pa.array(predictions.uri, pa.string()),
        "width": pa.array(predictions.width, pa.int32(), mask=predictions.width == 0),
        "height": pa.array(predictions.height, pa.int32(), mask=predictions.height == 0),
        "status": pa.array(np.where(is_failed, "failed", "ok"), pa.string()),
        "error": pa.array([failure and asdict(failure) for failure in failures], _FAILURE),
    }


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


# A model of a job with its predictions of one kind for a batch, such as Labels.
_Part = tuple[ResultModel, Any]
_StructsOf = Callable[[ResultModel, Any], pa.StructArray]  # one struct for each element


def _list_columns(
    column: str, structs_of: _StructsOf, parts: Sequence[_Part], is_failed: np.ndarray
) -> dict[str, pa.Array]:
    """Return a list of structs for each image, those of the job's first model first."""
    image_index = np.concatenate([values.image_index for _, values in parts])
    order = np.argsort(image_index, kind="stable")
    structs = pa.concat_arrays([structs_of(model, values) for model, values in parts])
    return {column: _lists(structs.take(pa.array(order)), image_index[order], is_failed)}


def _classified(model: ResultModel, values: Any) -> dict[str, Any]:
    """Return the fields that labels, boxes and heatmaps have."""
    label = _named(model.spec.classes, values.class_id)
    return {"class_id": values.class_id, "label": label, "score": values.score}


def _label_structs(model: ResultModel, labels: Labels) -> pa.StructArray:
    return _struct(_LABEL, _classified(model, labels))


def _box_structs(model: ResultModel, boxes: Boxes) -> pa.StructArray:
    sides = dict(zip(("x_min", "y_min", "x_max", "y_max"), boxes.xyxy.T, strict=True))
    return _struct(_BOX, {**sides, **_classified(model, boxes)})


def _box_mask_structs(model: ResultModel, masks: BoxMasks) -> pa.StructArray:
    """Return one mask for each of `boxes`, in their order."""
    offsets = np.concatenate([[0], np.cumsum(masks.length)]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(masks.counts))]
    sides = np.stack([masks.height, masks.width], axis=1).reshape(-1).astype(np.int32)
    every_second = np.arange(0, len(sides) + 1, 2, dtype=np.int32)
    fields = {
        "size": pa.ListArray.from_arrays(pa.array(every_second), pa.array(sides)),
        "counts": pa.Array.from_buffers(pa.string(), len(masks.length), buffers),
    }
    return _struct(_RLE, fields)


def _heatmap_structs(model: ResultModel, maps: Heatmaps) -> pa.StructArray:
    count = len(maps.class_id)
    sizes = maps.height.astype(np.int64) * maps.width
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    values = pa.array(maps.values, pa.float32())
    fields = {
        "model": [model.spec.name] * count,
        "layer": [model.spec.heatmap_layer] * count,
        **_classified(model, maps),
        "height": maps.height,
        "width": maps.width,
        "values": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values),
    }
    return _struct(_HEATMAP, fields)


def _mask_columns(parts: Sequence[_Part], is_failed: np.ndarray) -> dict[str, pa.Array]:
    """Return the masks as PNG and the area of every class that occurs."""
    ((model, masks),) = parts
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
    column: str, parts: Sequence[_Part], is_failed: np.ndarray
) -> dict[str, pa.Array]:
    """Return the vectors of one model as lists of a fixed size."""
    ((model, vectors),) = parts
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
        write: function of (models with their predictions of the kind, is_failed (N,)) that returns
            the columns for N images.
    """

    types: dict[str, pa.DataType]
    write: Callable[[Sequence[_Part], np.ndarray], dict[str, pa.Array]]


def _lists_of(column: str, type_: pa.StructType, structs_of: _StructsOf) -> PredictionKind:
    """Return a kind with one column, a list of structs."""
    return PredictionKind({column: pa.list_(type_)}, partial(_list_columns, column, structs_of))


# Field of ModelPredictions → its columns, in the order of the Parquet schema.
PREDICTION_KINDS: dict[str, PredictionKind] = {
    "labels": _lists_of("labels", _LABEL, _label_structs),
    "boxes": _lists_of("boxes", _BOX, _box_structs),
    "box_masks": _lists_of("box_masks", _RLE, _box_mask_structs),
    "masks": PredictionKind({"mask": IMAGE, "mask_areas": pa.list_(_AREA)}, _mask_columns),
    "heatmaps": _lists_of("heatmaps", _HEATMAP, _heatmap_structs),
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
    for name, kind in PREDICTION_KINDS.items():
        parts = [
            (model, values)
            for model, predicted in by_model
            if not kind.types.keys().isdisjoint(model.columns)
            and (values := getattr(predicted, name)) is not None
        ]
        columns |= kind.write(parts, is_failed) if parts else {}
    for field in schema:  # without predictions if no image of the batch could be decoded
        columns.setdefault(field.name, pa.nulls(len(is_failed), field.type))
    return pa.table([columns[name] for name in schema.names], schema=schema)
