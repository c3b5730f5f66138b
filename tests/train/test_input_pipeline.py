"""A step has the same images on any number of workers, and a run resumes at any batch."""

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
    DecodeSpec,
    ExampleReader,
    Shard,
    SizeSchedule,
    TrainingBatches,
    prefetch,
    summarize_failures,
    validation_batches,
)
from tests.support import datasets

LABELS = LabelSpec("labels", True)
SPEC = DecodeSpec(Storage(), LABELS, InputKey(8, 8, "stretch"), Limits())
COUNT = 21


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> LabelledDataset:
    folder = tmp_path_factory.mktemp("labelled")
    files = {
        f"{'cat' if i % 2 else 'dog'}/{i:02d}.png": datasets.picture(seed=i) for i in range(COUNT)
    }
    source = datasets.put(folder / "in", files)
    datasets.imported("folders", source, folder / "out", split=(1.0, 0.0, 0.0), shard_images=5)
    return scan_dataset(Storage(), [str(folder / "out")], LABELS)


def batches_of(data, worker, workers, batch, augmentation=None, spec=SPEC, pool=10):
    reader = ExampleReader(data.splits["train"], spec, Shard(worker, workers, batch))

    def targets(examples):
        return {"label": np.array([example.class_ids[0] for example in examples])}

    return TrainingBatches(reader, targets, augmentation, seed=4, pool_images=pool)


def steps(sources, epoch=0, first=0):
    """Return the pixels of every step, concatenated over the workers."""
    shards = [list(source(epoch, first)) for source in sources]
    longest = max(map(len, shards))
    return [
        np.concatenate([batches[i].pixels for batches in shards if i < len(batches)])
        for i in range(longest)
    ]


@pytest.mark.parametrize("augmentation", [None, Augmentation(flip="both", brightness=0.5, seed=1)])
@pytest.mark.parametrize(("workers", "batch"), [(2, 4), (4, 2), (8, 1)])
def test_the_images_of_a_step_do_not_depend_on_the_workers(data, workers, batch, augmentation):
    alone = steps([batches_of(data, 0, 1, 8, augmentation)])
    together = steps([batches_of(data, w, workers, batch, augmentation) for w in range(workers)])
    assert [len(step) for step in alone] == [8, 8, 5]
    for expected, pixels in zip(alone, together, strict=True):
        np.testing.assert_array_equal(pixels, expected)


def test_every_image_occurs_once_per_epoch_in_another_order(data):
    epochs = [np.concatenate(steps([batches_of(data, 0, 1, 8)], epoch)) for epoch in (0, 1)]
    images = [sorted(image.tobytes() for image in epoch) for epoch in epochs]
    assert len(set(images[0])) == COUNT and images[0] == images[1]
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_an_epoch_resumes_at_any_batch(data, first):
    for worker in (0, 1):
        complete = list(batches_of(data, worker, 2, 4)(3, 0))
        rest = list(batches_of(data, worker, 2, 4)(3, first))
        assert len(rest) == max(0, len(complete) - first)
        for batch, resumed in zip(complete[first:], rest, strict=True):
            np.testing.assert_array_equal(batch.pixels, resumed.pixels)
            np.testing.assert_array_equal(batch.targets["label"], resumed.targets["label"])


def test_targets_belong_to_their_images(data):
    train = data.splits["train"]
    reader = ExampleReader(train, SPEC, Shard(0, 1, COUNT))
    (examples,) = reader.batches(in_order(train), 0, None)
    label_of = {e.pixels.tobytes(): e.class_ids[0] for e in examples}
    for batch in batches_of(data, 0, 1, 4)(0, 0):
        labels = [label_of[image.tobytes()] for image in batch.pixels]
        assert labels == batch.targets["label"].tolist()
        assert batch.num_real == len(batch.pixels)


def test_workers_validate_every_image_once(data):
    readers = [ExampleReader(data.splits["train"], SPEC, Shard(w, 3, 2)) for w in range(3)]
    ids = [
        e.image_id
        for reader in readers
        for _, examples in validation_batches(reader)
        for e in examples
    ]
    assert len(ids) == len(set(ids)) == COUNT


SIZES = ((8, 8), (16, 8), (24, 24))


def multi_scale_batches(data, worker, workers, batch, **of_step):
    reader = ExampleReader(data.splits["train"], SPEC, Shard(worker, workers, batch))
    sizes = SizeSchedule(SIZES, seed=2, **of_step)
    return TrainingBatches(reader, lambda examples: {}, None, 4, 10, sizes)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_all_workers_have_the_same_size_in_every_step(data, accumulate):
    of_step = {"accumulate": accumulate, "steps_per_epoch": 40}
    sources = [multi_scale_batches(data, worker, 2, 8, **of_step) for worker in range(2)]
    first, second = (
        [[(b.pixels.shape, b.num_real) for b in source(epoch, 0)] for epoch in (0, 1)]
        for source in sources
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


def test_padding_after_a_resume_has_the_size_of_the_step(data):
    of_step = {"accumulate": 1, "steps_per_epoch": 40}
    complete = list(multi_scale_batches(data, 1, 2, 8, **of_step)(1, 0))
    rest = list(multi_scale_batches(data, 1, 2, 8, **of_step)(1, 30))
    assert [b.pixels.shape[1:] for b in rest] == [b.pixels.shape[1:] for b in complete[30:]]
    assert {b.num_real for b in rest} == {0}


def test_an_unusable_image_is_left_out_and_reported(data):
    small = DecodeSpec(Storage(), LABELS, InputKey(8, 8, "stretch"), Limits(max_pixels=10))
    source = batches_of(data, 0, 1, 8, spec=small)
    with pytest.raises(TrainingError, match="none of the first 8 images can be used, for example"):
        list(source(0, 0))
    train = data.splits["train"]
    reader = ExampleReader(train, SPEC, Shard(0, 1, 8))
    decode = reader._decode
    reader._decode = lambda row: decode(row._replace(data=b"") if "dog" in row.image_id else row)
    names = [e.image_id for batch in reader.batches(in_order(train), 0, None) for e in batch]
    assert len(names) == 10 and not any("dog" in name for name in names)
    assert len(reader.failures) == 11
    assert {failure.kind for failure in reader.failures.values()} == {"empty"}


def test_a_greyscale_network_gets_luma(data):
    grey = DecodeSpec(Storage(), LABELS, InputKey(8, 8, "stretch"), Limits(), channels=1)
    colour, luma = (next(iter(batches_of(data, 0, 1, 8, spec=spec)(0, 0))) for spec in (SPEC, grey))
    expected = colour.pixels @ np.array([0.299, 0.587, 0.114])
    assert luma.pixels.shape == (8, 8, 8, 1)
    np.testing.assert_allclose(luma.pixels[..., 0], expected, atol=1)


def test_prefetch_yields_the_values_and_raises_errors():
    assert list(prefetch(iter(()))) == []
    assert list(prefetch(iter(range(9)))) == list(range(9))

    def broken():
        yield 1
        raise ValueError("broken")

    values = prefetch(broken())
    assert next(values) == 1
    with pytest.raises(ValueError, match="broken"):
        next(values)


def test_the_summary_of_a_training_tells_how_many_images_were_left_out():
    from cvbatch.train.job import TrainSummary

    failures = {
        "b.jpg": ("truncated", "the JPEG ends early"),
        "a.jpg": ("truncated", "the JPEG ends early"),
        "c.jpg": ("too_large", "4 bytes"),
    }
    counts = summarize_failures(failures)
    assert counts["count"] == sum(counts["kinds"].values()) == 3
    assert list(counts["such_as"]) == ["a.jpg", "b.jpg", "c.jpg"]
    assert summarize_failures({}) == {"count": 0, "kinds": {}, "such_as": {}}
    many = {f"{i}": ("empty", "no bytes") for i in range(100)}
    assert (summarize_failures(many)["count"], len(summarize_failures(many)["such_as"])) == (100, 5)
    summary = TrainSummary(
        "out", "f", 1, {"train": 9}, metrics={"validation": {"accuracy": 0.5}},
        num_unusable=counts, num_unlabelled={"train": 2, "validation": 0},
    )  # fmt: skip
    assert summary.summary_line() == (
        "validation accuracy 0.5000; 5 images left out (1 too large, 2 truncated, 2 without a "
        "label in train)"
    )
    assert summary.as_json()["num_unlabelled"] == {"train": 2, "validation": 0}
    # Summaries that earlier versions stored, and trainings that used all images.
    for earlier in ({}, {"count": 0, "such_as": {}}, summarize_failures({})):
        complete = TrainSummary("out", "f", 1, {"train": 9}, num_unusable=earlier)
        assert complete.summary_line().startswith("not validated: source.splits names")
