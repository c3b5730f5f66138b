"""Every worker gets any number of micro-batches: real images first, then padding."""

import numpy as np
import pytest

from cvbatch.core.errors import TrainingError
from cvbatch.train.batches import Batch, PaddedBatches, pad_batch


def batch_of(values, num_real=None):
    values = np.array(values, np.uint8)
    return Batch(values[:, None], {"label": values}, len(values) if num_real is None else num_real)


def source_of(*epoch):
    return lambda number, first: iter([batch_of(values) for values in epoch[first:]])


def test_a_worker_without_images_is_an_error():
    batches = PaddedBatches(source_of(), size=2, worker=3)
    batches.start_epoch(0, 0)
    with pytest.raises(TrainingError, match="worker 3 has no image"):
        batches.next_batch()


@pytest.mark.parametrize(
    ("values", "num_real", "rows"),
    [
        ([5], 1, [5, 5, 5, 5]),
        ([1, 2, 3], 3, [1, 2, 3, 1]),
        ([1, 2, 3, 4], 4, [1, 2, 3, 4]),
        ([1, 2, 9, 9], 2, [1, 2, 1, 2]),
        ([8, 9], 0, [8, 9, 8, 9]),
    ],
)
def test_padding_repeats_real_rows(values, num_real, rows):
    padded = pad_batch(batch_of(values, num_real), 4)

    assert padded.pixels[:, 0].tolist() == padded.targets["label"].tolist() == rows
    assert padded.num_real == num_real


@pytest.mark.parametrize("values", [[], [1, 2, 3]])
def test_a_batch_that_cannot_be_padded_is_refused(values):
    with pytest.raises(TrainingError, match="padded to 2"):
        pad_batch(batch_of(values), 2)


def test_after_the_last_image_batches_are_padding():
    batches = PaddedBatches(source_of([1, 2], [3]), size=2)
    batches.start_epoch(0, 0)
    results = [batches.next_batch() for _ in range(4)]

    assert [batch.num_real for batch in results] == [2, 1, 0, 0]
    assert [batch.pixels[:, 0].tolist() for batch in results] == [[1, 2], [3, 3], [3, 3], [3, 3]]


def test_an_epoch_starts_at_any_batch():
    batches = PaddedBatches(source_of([1], [2], [3]), size=1)
    for first, expected in ((0, [1, 2, 3, 3]), (2, [3, 3]), (1, [2, 3])):
        batches.start_epoch(0, first)
        assert [int(batches.next_batch().pixels[0, 0]) for _ in expected] == expected


def test_a_run_resumed_after_the_last_image_has_padding():
    batches = PaddedBatches(source_of([7], [8]), size=1)
    batches.start_epoch(0, 5)

    assert batches.next_batch().num_real == 0
