"""Batches and predictions are the same after serialization."""

import numpy as np
import pyarrow as pa

from cvbatch.core.types import (
    Boxes,
    BoxMasks,
    Failure,
    Heatmaps,
    ImageBatch,
    InputKey,
    Labels,
    Masks,
    ModelPredictions,
    Predictions,
    Tiling,
    Vectors,
)
from cvbatch.predict import serialization


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and not hasattr(a, "_fields"):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(
            same(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__
        )
    return a == b


def image_batch(num_decoded):
    rng = np.random.default_rng(num_decoded)
    count = num_decoded + 1
    return ImageBatch(
        chunk_id="c",
        image_id=[f"é{i}\udcff" if i else "a" for i in range(count)],
        uri=[f"/u{i}" for i in range(count)],
        width=np.arange(count, dtype=np.int32),
        height=np.arange(count, dtype=np.int32) + 10,
        failures={0: Failure("decode", "truncated", "a message")},
        pixels={
            InputKey(3, 5, "stretch"): rng.integers(0, 255, (num_decoded, 3, 5, 3), np.uint8),
            InputKey(3, 5, "stretch", Tiling(9, 8, 2, 0)): rng.integers(
                0, 255, (2 * num_decoded, 3, 5, 3), np.uint8
            ),
            InputKey(2, 2, "crop"): rng.integers(0, 255, (num_decoded, 2, 2, 3), np.uint8),
        },
    )


def predictions():
    index = np.array([1, 1, 2])
    rng = np.random.default_rng(0)
    sizes = np.array([2, 1, 3], np.int32), np.array([4, 1, 2], np.int32)
    ids, scores = np.array([3, 1, 0], np.int32), rng.random(3, np.float32)
    return Predictions(
        chunk_id="c",
        image_id=["a", "b", "c"],
        uri=["x", "y", "z"],
        width=np.array([0, 4, 5], np.int32),
        height=np.array([0, 6, 7], np.int32),
        failures={0: Failure("decode", "empty", "0 bytes")},
        models=(
            ModelPredictions(
                labels=Labels(ids, scores, index),
                heatmaps=Heatmaps(
                    rng.random(2 * 4 + 1 + 6, np.float32), *sizes, ids, scores, index
                ),
            ),
            ModelPredictions(
                masks=Masks(
                    rng.integers(0, 9, 15, np.uint8), index * 3, rng.integers(0, 9, (3, 4)), index
                )
            ),
            ModelPredictions(
                boxes=Boxes(rng.random((3, 4), np.float32), scores, ids, index),
                box_masks=BoxMasks(rng.integers(48, 112, 9, np.uint8), ids, *sizes, index),
            ),
            ModelPredictions(
                embedding=Vectors(rng.random((3, 7), np.float32), index),
                values=Vectors(rng.random((3, 1), np.float32), index),
            ),
            ModelPredictions(),
        ),
    )


def test_no_batch_gives_no_batch():
    assert serialization.table_to_image_batches(serialization.image_batches_to_table([])) == []
    assert serialization.table_to_predictions(serialization.predictions_to_table([])) == []


def test_image_batches_round_trip():
    batches = [image_batch(3), image_batch(0), image_batch(1)]
    assert same(
        serialization.table_to_image_batches(serialization.image_batches_to_table(batches)), batches
    )


def test_predictions_round_trip_after_blocks_are_concatenated():
    table = serialization.predictions_to_table([predictions()])
    concatenated = pa.concat_tables([table, table])
    assert same(serialization.table_to_predictions(concatenated), [predictions()] * 2)


def test_widths_and_heights_are_not_swapped():
    (read,) = serialization.table_to_predictions(
        serialization.predictions_to_table([predictions()])
    )
    assert read.width.tolist() == [0, 4, 5] and read.height.tolist() == [0, 6, 7]
    heatmaps = read.models[0].heatmaps
    assert heatmaps.height.tolist() == [2, 1, 3]
    assert heatmaps.width.tolist() == [4, 1, 2]


def test_columns_have_plain_types():
    table = serialization.image_batches_to_table([image_batch(2)])
    assert [str(field.type) for field in table.schema] == ["string", "large_binary"]
