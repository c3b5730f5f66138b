"""A step holds the same images whatever the number of workers, and a run may go on anywhere."""

import numpy as np
import pytest

from cvbatch.core.errors import TrainingError
from cvbatch.core.types import InputKey
from cvbatch.datasets.examples import in_order
from cvbatch.datasets.reader import LabelledDataset, LabelSpec, scan_dataset
from cvbatch.images.decode import Limits
from cvbatch.storage.store import Storage
from cvbatch.train.augmentation import Augmentation
from cvbatch.train.input_pipeline import (
    Laying,
    Reader,
    Scales,
    Share,
    TrainingBatches,
    ahead,
    judged,
)
from tests.support import datasets

WANTED = LabelSpec("labels", True)
LAYING = Laying(Storage(), WANTED, InputKey(8, 8, "stretch"), Limits())
COUNT = 21


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> LabelledDataset:
    folder = tmp_path_factory.mktemp("labelled")
    files = {
        f"{'cat' if i % 2 else 'dog'}/{i:02d}.png": datasets.picture(seed=i) for i in range(COUNT)
    }
    source = datasets.put(folder / "in", files)
    datasets.imported("folders", source, folder / "out", split=(1.0, 0.0, 0.0), shard_images=5)
    return scan_dataset(Storage(), [str(folder / "out")], WANTED)


def feed(data, worker, workers, batch, augmentation=None, laying=LAYING, pool=10):
    reader = Reader(data.splits["train"], laying, Share(worker, workers, batch))

    def targets(examples):
        return {"label": np.array([example.class_ids[0] for example in examples])}

    return TrainingBatches(reader, targets, augmentation, seed=4, pool_images=pool)


def steps(feeds, epoch=0, first=0):
    """Return the pixels of every step, those of all workers one after the other."""
    made = [list(one(epoch, first)) for one in feeds]
    longest = max(map(len, made))
    return [
        np.concatenate([batches[i].pixels for batches in made if i < len(batches)])
        for i in range(longest)
    ]


@pytest.mark.parametrize("augmentation", [None, Augmentation(flip="both", brightness=0.5, seed=1)])
@pytest.mark.parametrize(("workers", "batch"), [(2, 4), (4, 2), (8, 1)])
def test_the_number_of_workers_changes_no_step(data, workers, batch, augmentation):
    alone = steps([feed(data, 0, 1, 8, augmentation)])
    together = steps([feed(data, w, workers, batch, augmentation) for w in range(workers)])
    assert [len(step) for step in alone] == [8, 8, 5]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_image_is_seen_once_an_epoch_and_orders_differ(data):
    epochs = [np.concatenate(steps([feed(data, 0, 1, 8)], epoch)) for epoch in (0, 1)]
    seen = [sorted(image.tobytes() for image in epoch) for epoch in epochs]
    assert len(set(seen[0])) == COUNT and seen[0] == seen[1]
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_it_goes_on_from_any_batch(data, first):
    for worker in (0, 1):
        whole = list(feed(data, worker, 2, 4)(3, 0))
        rest = list(feed(data, worker, 2, 4)(3, first))
        assert len(rest) == max(0, len(whole) - first)
        for batch, same in zip(whole[first:], rest, strict=True):
            np.testing.assert_array_equal(batch.pixels, same.pixels)
            np.testing.assert_array_equal(batch.targets["label"], same.targets["label"])


def test_targets_belong_to_their_images(data):
    train = data.splits["train"]
    reader = Reader(train, LAYING, Share(0, 1, COUNT))
    (examples,) = reader.batches(in_order(train), 0, None)
    of_image = {e.pixels.tobytes(): e.class_ids[0] for e in examples}
    for batch in feed(data, 0, 1, 4)(0, 0):
        said = [of_image[image.tobytes()] for image in batch.pixels]
        assert said == batch.targets["label"].tolist()
        assert batch.num_real == len(batch.pixels)


def test_workers_judge_every_image_once(data):
    readers = [Reader(data.splits["train"], LAYING, Share(w, 3, 2)) for w in range(3)]
    ids = [e.image_id for reader in readers for _, found in judged(reader) for e in found]
    assert len(ids) == len(set(ids)) == COUNT


SIZES = ((8, 8), (16, 8), (24, 24))


def scaled_feed(data, worker, workers, batch, **of_step):
    reader = Reader(data.splits["train"], LAYING, Share(worker, workers, batch))
    scales = Scales(SIZES, seed=2, **of_step)
    return TrainingBatches(reader, lambda examples: {}, None, 4, 10, scales)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_worker_has_a_steps_size_to_the_epochs_end(data, accumulate):
    of_step = {"accumulate": accumulate, "steps_per_epoch": 40}
    feeds = [scaled_feed(data, worker, 2, 8, **of_step) for worker in range(2)]
    first, second = (
        [[(b.pixels.shape, b.num_real) for b in one(epoch, 0)] for epoch in (0, 1)] for one in feeds
    )
    sizes = [[shape[1:3] for shape, _ in epoch] for epoch in first]
    assert sizes == [[shape[1:3] for shape, _ in epoch] for epoch in second]
    for epoch in sizes:
        assert len(epoch) == 40 * accumulate
        steps_of = [set(epoch[i : i + accumulate]) for i in range(0, len(epoch), accumulate)]
        assert all(len(step) == 1 for step in steps_of)
    assert {size for epoch in sizes for size in epoch} == set(SIZES)
    for epoch in (0, 1):
        assert sum(real for worker in (first, second) for _, real in worker[epoch]) == COUNT


def test_resumed_behind_its_images_a_worker_pads_in_the_steps_size(data):
    of_step = {"accumulate": 1, "steps_per_epoch": 40}
    whole = list(scaled_feed(data, 1, 2, 8, **of_step)(1, 0))
    rest = list(scaled_feed(data, 1, 2, 8, **of_step)(1, 30))
    assert [b.pixels.shape[1:] for b in rest] == [b.pixels.shape[1:] for b in whole[30:]]
    assert {b.num_real for b in rest} == {0}


def test_an_image_that_cannot_be_used_is_left_out_and_noted(data):
    small = Laying(Storage(), WANTED, InputKey(8, 8, "stretch"), Limits(max_pixels=10))
    one = feed(data, 0, 1, 8, laying=small)
    with pytest.raises(TrainingError, match="none of the first 8 images can be used, such as"):
        list(one(0, 0))
    train = data.splits["train"]
    half = Reader(train, LAYING, Share(0, 1, 8))
    real = half._laid
    half._laid = lambda row: real(row._replace(data=b"") if "dog" in row.image_id else row)
    left = [e.image_id for found in half.batches(in_order(train), 0, None) for e in found]
    assert len(left) == 10 and not any("dog" in name for name in left)
    assert len(half.failures) == 11
    assert {failure.kind for failure in half.failures.values()} == {"empty"}


def test_a_network_that_takes_grey_gets_it(data):
    grey = Laying(Storage(), WANTED, InputKey(8, 8, "stretch"), Limits(), channels=1)
    colour, luma = (next(iter(feed(data, 0, 1, 8, laying=one)(0, 0))) for one in (LAYING, grey))
    expected = colour.pixels @ np.array([0.299, 0.587, 0.114])
    assert luma.pixels.shape == (8, 8, 8, 1)
    np.testing.assert_allclose(luma.pixels[..., 0], expected, atol=1)


def test_ahead_gives_what_it_is_given_and_passes_errors_on():
    assert list(ahead(iter(()))) == []
    assert list(ahead(iter(range(9)))) == list(range(9))

    def broken():
        yield 1
        raise ValueError("broken")

    values = ahead(broken())
    assert next(values) == 1
    with pytest.raises(ValueError, match="broken"):
        next(values)
