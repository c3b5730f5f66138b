"""A history says the same in every form, and odd numbers do not spoil it."""

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
def test_json_and_parquet_hold_the_rows(count):
    rows = rows_of(count)
    told = json.loads(history.to_json(rows))
    table = pq.read_table(io.BytesIO(history.to_parquet(rows)))
    plain = table.to_pylist()

    assert len(told) == table.num_rows == count
    for row, one, other in zip(rows, told, plain, strict=True):
        for key in history.columns_of(rows):
            value = row.get(key)
            if isinstance(value, float) and math.isnan(value):
                assert one[key] is None
                assert math.isnan(other[key])
            else:
                assert one[key] == other[key] == value
    kinds = {str(field.type) for field in table.schema}
    assert kinds <= {"int64", "double", "string"}


def test_a_column_that_no_row_fills_is_no_column():
    assert history.columns_of([{"loss": 1.0, "epoch": 1}, {"odd": 2, "epoch": 2}]) == [
        "epoch",
        "loss",
        "odd",
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_curves_are_a_picture_with_a_tile_for_each_number(count):
    data = history.curves_png(rows_of(count), best_epoch=min(count, 4))
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    tiles = {0: 0, 1: 3, 2: 3, 5: 4}[count]

    assert (picture < 128).any() == (tiles > 0)
    assert picture.shape[0] > 240 * -(-tiles // 3)


def test_a_curve_falls_where_its_values_fall():
    tile = history._curve(np.array([3.0, 2.0, np.nan, 1.0]), [], best=3)
    ys, xs = np.nonzero((tile != 255).any(axis=-1))

    assert ys[xs.argmin()] < ys[xs.argmax()]
    assert (tile == history._BEST).all(axis=-1).any()


def test_tensorboard_gets_every_number(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c  # the format's own check, as a witness

    history.write_tensorboard(rows_of(3), tmp_path / "logs")
    (path,) = (tmp_path / "logs").iterdir()
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        assert masked_crc32c(data[12 : 12 + size]) == int.from_bytes(
            data[12 + size : 16 + size], "little"
        )
        event = Event.FromString(data[12 : 12 + size])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + size :]

    assert (20, "loss", 1.0) in found
    assert {tag for _, tag, _ in found} >= {"loss", "accuracy", "learning_rate", "seconds"}
    assert not any(math.isnan(value) for *_, value in found)


def test_a_line_says_what_a_person_wants():
    said = history.format_row(rows_of(1)[0])

    assert said == "epoch 1 · step 10 · 2 s · learning_rate 0.1 · loss 2"
