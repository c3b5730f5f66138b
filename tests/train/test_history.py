"""The history contains the same values in every format; NaN and infinity are allowed."""

import io
import json
import math

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
            "val_loss": 2.5 - i,
            "loss_box": 1.0,
            "accuracy": 0.5 if i else math.nan,
            "recall/cat": 0.25,
            "recall/a/b": math.nan if i else 0.125,
            "iou/cat": 0.5,
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
        for key in {key for other in rows for key in other}:
            value = row.get(key)
            if isinstance(value, float) and math.isnan(value):
                assert a[key] is None
                assert math.isnan(b[key])
            else:
                assert a[key] == b[key] == value
    kinds = {str(field.type) for field in table.schema}
    assert kinds <= {"int64", "double", "string"}


def test_values_on_the_validation_images_are_those_without_the_training():
    values = history.validation_values(rows_of(2)[1])
    assert {k: v for k, v in values.items() if k != "recall/a/b"} == {
        "loss": 1.5, "accuracy": 0.5, "recall/cat": 0.25, "iou/cat": 0.5
    }  # fmt: skip


def test_columns_are_the_leading_ones_then_the_others():
    assert history.columns_of([{"loss": 1.0, "epoch": 1}, {"odd": 2, "epoch": 2}]) == [
        "epoch",
        "loss",
        "odd",
    ]


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
    tags = {tag for _, tag, _ in scalars}
    assert tags >= {"loss", "val_loss", "accuracy", "learning_rate", "seconds", "recall/cat"}
    assert not any(math.isnan(value) for *_, value in scalars)


def test_a_line_contains_the_finite_numbers():
    line = history.format_row(rows_of(1)[0], 40)

    assert line == (
        "epoch 1/40 · loss 2 · val_loss 2.5 · learning_rate 0.1 · "
        "lowest recall: a/b 0.125, cat 0.25 · 2 s"
    )


def test_values_of_classes_are_grouped_by_name():
    assert history.class_values(rows_of(1)[0]) == {
        "recall": {"cat": 0.25, "a/b": 0.125},
        "iou": {"cat": 0.5},
    }
