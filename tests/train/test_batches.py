"""Every worker gets as many micro-batches as it asks for, of real images while there are some."""

import numpy as np
import pytest

from cvbatch.core.errors import TrainingError
from cvbatch.train.batches import Batch, PaddedBatches, pad_batch


def batch_of(values, num_real=None):
    values = np.array(values, np.uint8)
    return Batch(values[:, None], {"label": values}, len(values) if num_real is None else num_real)


def feed_of(*epoch):
    return lambda number, first: iter([batch_of(values) for values in epoch[first:]])


def test_no_image_at_all_names_the_worker():
    supply = PaddedBatches(feed_of(), size=2, worker=3)
    supply.begin(0, 0)
    with pytest.raises(TrainingError, match="worker 3 has no image"):
        supply.take()


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
def test_padding_repeats_what_is_real(values, num_real, rows):
    got = pad_batch(batch_of(values, num_real), 4)

    assert got.pixels[:, 0].tolist() == got.targets["label"].tolist() == rows
    assert got.num_real == num_real


@pytest.mark.parametrize("values", [[], [1, 2, 3]])
def test_a_batch_that_cannot_be_padded_is_refused(values):
    with pytest.raises(TrainingError, match="padded to 2"):
        pad_batch(batch_of(values), 2)


def test_where_images_have_ended_the_last_ones_come_again_and_count_nothing():
    supply = PaddedBatches(feed_of([1, 2], [3]), size=2)
    supply.begin(0, 0)
    got = [supply.take() for _ in range(4)]

    assert [batch.num_real for batch in got] == [2, 1, 0, 0]
    assert [batch.pixels[:, 0].tolist() for batch in got] == [[1, 2], [3, 3], [3, 3], [3, 3]]


def test_an_epoch_begins_anew_and_anywhere():
    supply = PaddedBatches(feed_of([1], [2], [3]), size=1)
    for first, expected in ((0, [1, 2, 3, 3]), (2, [3, 3]), (1, [2, 3])):
        supply.begin(0, first)
        assert [int(supply.take().pixels[0, 0]) for _ in expected] == expected


def test_a_run_resumed_behind_the_last_image_still_has_padding():
    supply = PaddedBatches(feed_of([7], [8]), size=1)
    supply.begin(0, 5)

    assert supply.take().num_real == 0
