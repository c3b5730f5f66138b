"""Serialize image batches and predictions as Arrow columns between Ray Data tasks.

A batch is one row: a JSON header with its fields and array layout, and a body with the bytes of all
arrays. There is no pickle and no tensor extension; the arrays read back are views of the body.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, get_args, get_type_hints

import numpy as np
import pyarrow as pa

from cvbatch.core.types import (
    Failure,
    ImageBatch,
    InputKey,
    ModelPredictions,
    Predictions,
    Tiling,
)

# large_binary: the pixels of a chunk may exceed 2 GiB, the limit of 32-bit offsets.
SCHEMA = pa.schema([("head", pa.string()), ("body", pa.large_binary())])
_ALIGNMENT = 64
# Field of ModelPredictions → its data type. A field is None if the task does not predict it.
_TYPES: dict[str, type[Any]] = {
    name: get_args(optional)[0] for name, optional in get_type_hints(ModelPredictions).items()
}
_Arrays = list[np.ndarray]


def image_batches_to_table(batches: Sequence[ImageBatch]) -> pa.Table:
    """Return decoded batches as a table of `SCHEMA`, one row a batch."""
    rows = []
    for batch in batches:
        keys = list(batch.pixels)
        head = _common_head(batch) | {"keys": [list(key) for key in keys]}
        rows.append((head, [batch.width, batch.height, *(batch.pixels[key] for key in keys)]))
    return _to_table(rows)


def table_to_image_batches(table: pa.Table) -> list[ImageBatch]:
    """Return the batches of a table of `image_batches_to_table`."""
    batches = []
    for head, arrays in _from_table(table):
        keys = [_input_key(InputKey(*key)) for key in head.pop("keys")]
        width, height, *pixels = arrays
        batches.append(
            ImageBatch(
                **_common_fields(head),
                width=width,
                height=height,
                pixels=dict(zip(keys, pixels, strict=True)),
            )
        )
    return batches


def predictions_to_table(predictions: Sequence[Predictions]) -> pa.Table:
    """Return predictions as a table of `SCHEMA`, one row a batch."""
    rows = []
    for batch in predictions:
        arrays: _Arrays = [batch.width, batch.height]
        models = []
        for model in batch.models:
            names = [name for name in _TYPES if getattr(model, name) is not None]
            models.append(names)
            for name in names:
                value = getattr(model, name)
                arrays += [getattr(value, field.name) for field in fields(value)]
        rows.append((_common_head(batch) | {"models": models}, arrays))
    return _to_table(rows)


def table_to_predictions(table: pa.Table) -> list[Predictions]:
    """Return the predictions of a table of `predictions_to_table`."""
    result = []
    for head, (width, height, *rest) in _from_table(table):
        arrays = iter(rest)
        models = [
            ModelPredictions(
                **{
                    name: _TYPES[name](*(next(arrays) for _ in fields(_TYPES[name])))
                    for name in names
                }
            )
            for names in head.pop("models")
        ]
        result.append(
            Predictions(**_common_fields(head), width=width, height=height, models=tuple(models))
        )
    return result


def _input_key(stored: InputKey) -> InputKey:
    """Return the key with its tiling, which is a list in JSON."""
    return stored if stored.tiling is None else stored._replace(tiling=Tiling(*stored.tiling))


def _common_head(batch: ImageBatch | Predictions) -> dict[str, Any]:
    return {
        "chunk_id": batch.chunk_id,
        "image_id": batch.image_id,
        "uri": batch.uri,
        "failures": [[i, asdict(failure)] for i, failure in batch.failures.items()],
    }


def _common_fields(head: dict[str, Any]) -> dict[str, Any]:
    return {**head, "failures": {i: Failure(**failure) for i, failure in head["failures"]}}


def _to_table(rows: Sequence[tuple[dict[str, Any], _Arrays]]) -> pa.Table:
    heads, bodies = [], []
    for head, arrays in rows:
        arrays = [np.ascontiguousarray(array) for array in arrays]
        layout = [[array.dtype.str, array.shape] for array in arrays]
        heads.append(json.dumps(head | {"layout": layout}))
        bodies.append(b"".join(part for array in arrays for part in (array.data, _padding(array))))
    return pa.table([heads, pa.array(bodies, pa.large_binary())], schema=SCHEMA)


def _padding(array: np.ndarray) -> bytes:
    return b"\0" * (-array.nbytes % _ALIGNMENT)


def _from_table(table: pa.Table) -> list[tuple[dict[str, Any], _Arrays]]:
    rows = []
    bodies = [value for chunk in table["body"].chunks for value in chunk]
    for text, body in zip(table["head"].to_pylist(), bodies, strict=True):
        head = json.loads(text)
        buffer, start, arrays = body.as_buffer(), 0, []
        for dtype, shape in head.pop("layout"):
            count = int(np.prod(shape))
            array = np.frombuffer(buffer, np.dtype(dtype), count, start).reshape(shape)
            arrays.append(array)
            start += array.nbytes + len(_padding(array))
        rows.append((head, arrays))
    return rows
