"""The history contains the same values in every format; NaN and infinity are allowed."""

import io
import json
import math

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from cvbatch.train import history


def rows_of(count):
    return [
        {
            "epoch": i + 1,
            "step": 10 * (i + 1),
            "phase": "head" if i < 2 else "all",
            "seconds": 1.5,
            "waited_seconds": 0.25,
            "learning_rate": 0.1 / (i + 1),
            "loss": 2.0 - i,
            "accuracy": 0.5 if i else math.nan,
            **({"late": 0.5} if i > 2 else {}),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_json_and_parquet_contain_the_rows(count):
    rows = rows_of(count)
    from_json = json.loads(history.to_json(rows))
    table = pq.read_table(io.BytesIO(history.to_parquet(rows)))
    from_parquet = table.to_pylist()

    assert len(from_json) == table.num_rows == count
    for row, a, b in zip(rows, from_json, from_parquet, strict=True):
        for key in history.columns_of(rows):
            value = row.get(key)
            if isinstance(value, float) and math.isnan(value):
                assert a[key] is None
                assert math.isnan(b[key])
            else:
                assert a[key] == b[key] == value
    kinds = {str(field.type) for field in table.schema}
    assert kinds <= {"int64", "double", "string"}


def test_columns_are_the_leading_ones_then_the_others():
    assert history.columns_of([{"loss": 1.0, "epoch": 1}, {"odd": 2, "epoch": 2}]) == [
        "epoch",
        "loss",
        "odd",
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_curves_are_an_image_with_a_tile_per_numeric_column(count):
    data = history.curves_png(rows_of(count), best_epoch=min(count, 4))
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    tiles = {0: 0, 1: 3, 2: 3, 5: 4}[count]

    assert (image < 128).any() == (tiles > 0)
    assert image.shape[0] > 240 * -(-tiles // 3)


def test_a_curve_falls_with_its_values():
    tile = history._curve(np.array([3.0, 2.0, np.nan, 1.0]), [], best=3)
    ys, xs = np.nonzero((tile != 255).any(axis=-1))

    assert ys[xs.argmin()] < ys[xs.argmax()]
    assert (tile == history._BEST_RGB).all(axis=-1).any()


def test_tensorboard_contains_every_number(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c  # independent of the reader in this test

    history.write_tensorboard(rows_of(3), tmp_path / "logs")
    (path,) = (tmp_path / "logs").iterdir()
    data, scalars = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        assert masked_crc32c(data[12 : 12 + size]) == int.from_bytes(
            data[12 + size : 16 + size], "little"
        )
        event = Event.FromString(data[12 : 12 + size])
        scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + size :]

    assert (20, "loss", 1.0) in scalars
    assert {tag for _, tag, _ in scalars} >= {"loss", "accuracy", "learning_rate", "seconds"}
    assert not any(math.isnan(value) for *_, value in scalars)


def test_a_line_contains_the_finite_numbers():
    line = history.format_row(rows_of(1)[0])

    assert line == "epoch 1 · step 10 · 2 s · learning_rate 0.1 · loss 2"
