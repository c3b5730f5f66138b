"""Few images: short chunks for all workers, and batches that these chunks fill."""

from __future__ import annotations

import pytest

from cvbatch.config.predict import JobConfig
from cvbatch.core.progress import Listener
from cvbatch.distributed.resources import Resources
from cvbatch.predict.job import prepare, samples_of
from cvbatch.storage.sink import Sink
from cvbatch.storage.store import Storage
from tests.support import jobs


def prepared(folder, **options):
    """Return the batch size of a job over the first images of an archive, and its chunks."""
    ready = prepared_job(folder, **options)
    return ready.job.run.batch_size, [ref.num_images for ref in ready.plan.chunks]


def prepared_job(folder, *, num_images, commit=False, model=(), **run):
    files = {f"{i:03d}.jpg": jobs.encoded_image(0) for i in range(num_images)}
    jobs.write_files(folder / "in", files)
    values = {
        "source": {"uri": str(folder / "in")},
        "sink": {"uri": str(folder / "out")},
        "models": [{"task": "classification", "model": "MobileNetV2", "weights": "random"}],
        "run": run,
    }
    values["models"][0].update(model)
    job = JobConfig.model_validate(values)
    with Sink(Storage(), job.sink.uri, "predict", lambda line: None) as sink:
        ready = prepare(job, sink, Listener(), Resources(4, 0))
        if commit:  # as `cvbatch.predict.job.commit`, which also writes the programs
            sink.acquire()
            state = {"fingerprint": ready.fingerprint, "job": ready.job.model_dump(mode="json")}
            sink.write_state(state)
            ready.plan.commit()
    return ready


@pytest.mark.parametrize(
    ("num_images", "batch", "num_chunks"),
    [(1, 1, 1), (8, 1, 8), (40, 4, 10), (300, 4, 38), (2000, 32, 63)],
)
def test_a_batch_is_as_long_as_the_chunks(tmp_path, num_images, batch, num_chunks):
    size, chunks = prepared(tmp_path, num_images=num_images)
    assert (size, len(chunks), sum(chunks)) == (batch, num_chunks, num_images)


def test_a_run_that_is_repeated_after_a_kill_has_the_same_chunks_and_batches(tmp_path):
    for run in ({}, {"chunk_images": 6}, {"batch_size": 3}):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        first = prepared(folder, num_images=40, commit=True, **run)
        assert prepared(folder, num_images=40, **run) == first
        for path in (folder / "out" / "_cvbatch" / "manifest").iterdir():
            path.unlink()  # killed before the plan was written
        assert prepared(folder, num_images=40, **run) == first


def test_images_that_are_added_fill_the_batches_of_the_programs_in_the_sink(tmp_path):
    assert prepared(tmp_path, num_images=300, commit=True) == (4, [8] * 37 + [4])
    size, chunks = prepared(tmp_path, num_images=320)
    assert (size, chunks) == (4, [8] * 37 + [4] + [4] * 5)


def test_a_sink_of_an_earlier_version_keeps_its_batch_size(tmp_path):
    first = prepared(tmp_path, num_images=40, commit=True, chunk_images=40)
    assert first == (32, [40])  # as the job says, and as without this key before
    assert prepared(tmp_path, num_images=80) == (32, [40, 32, 8])


def test_tiles_fill_batches_of_any_length(tmp_path):
    tiles = {"tiles": {"size": [224, 224]}}
    assert prepared(tmp_path, num_images=8, model=tiles) == (32, [1] * 8)


def test_networks_are_checked_on_images_of_several_short_chunks(tmp_path):
    ready = prepared_job(tmp_path, num_images=8)
    assert [ref.num_images for ref in ready.plan.chunks] == [1] * 8
    assert len(samples_of(ready).chunk.items) == 8
