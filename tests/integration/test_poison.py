"""An image that crashes, blocks or exhausts its worker becomes one failed row of a job."""

import pyarrow.parquet as pq
import pytest

from tests.support import jobs
from tests.support.crashing_images import poisoned, poisoned_env, write_stub

pytestmark = [pytest.mark.ray, pytest.mark.keras]

POISON = {"a/03.jpg": "abort", "a/04.jpg": "hang", "b/00.jpg": "allocate", "b/01.jpg": "abort"}
KINDS = {"abort": "crashed", "hang": "timeout", "allocate": "too_large"}
RUN = {"chunk_images": 4, "batch_size": 4, "image_timeout_s": 6, "max_failure_fraction": 1.0}


def run(tmp_path, archive, sink, models, env=None, **changes):
    values = jobs.job(archive, sink, models, **{**RUN, **changes})
    del values["models"][1:]
    values["source"] |= {
        "max_bytes": 10**6,
        "max_pixels": 10**6,
    }  # limits the memory of the decoder
    path = jobs.write_job(tmp_path / "job.yaml", values)
    status, _, stderr = jobs.cvbatch("predict", "--config", path, env=env)
    return status, stderr


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Five chunks of four images, all valid without the stub."""
    names = [f"{folder}/{number:02}.jpg" for folder in "ab" for number in range(10)]
    files = {
        name: poisoned(i, POISON[name]) if name in POISON else jobs.encoded_image(i)
        for i, name in enumerate(names)
    }
    return jobs.write_files(tmp_path_factory.mktemp("archive"), files)


@pytest.fixture(scope="module")
def done(archive, keras_files, tmp_path_factory):
    """The sink of a run without the stub."""
    folder = tmp_path_factory.mktemp("done")
    status, stderr = run(folder, archive, folder / "sink", keras_files)
    assert status == 0, stderr
    assert {row["status"] for row in jobs.rows(folder / "sink")} == {"ok"}
    return folder / "sink"


ARRANGEMENTS = {
    "fused": {"arrangement": "fused"},
    # below 1 CPU, so that Ray Data does not decode in the actors, as with a GPU
    "streaming": {"arrangement": "streaming", "cpus_per_actor": 0.5},
    "streaming, decoded in the actors": {"arrangement": "streaming"},
}


@pytest.mark.parametrize(
    ("arrangement", "kinds"),
    [
        ("fused", ["abort", "hang", "allocate"]),
        pytest.param("streaming", ["abort"], marks=pytest.mark.soak),
        pytest.param("streaming", ["abort", "hang", "allocate"], marks=pytest.mark.soak),
        pytest.param(
            "streaming, decoded in the actors",
            ["abort", "hang", "allocate"],
            marks=pytest.mark.soak,
        ),
    ],
)
def test_crashing_images_fail_their_rows_and_change_no_other(
    archive, done, keras_files, tmp_path, arrangement, kinds
):
    env = poisoned_env(write_stub(tmp_path / "stub"), kinds)
    poison = {name: KINDS[kind] for name, kind in POISON.items() if kind in kinds}
    sink = jobs.carry_programs(done, tmp_path / "sink")
    status, stderr = run(tmp_path, archive, sink, keras_files, env, **ARRANGEMENTS[arrangement])
    assert status == 0, stderr
    expected, rows = jobs.rows(done), jobs.rows(sink)
    assert [row["image_id"] for row in rows] == [row["image_id"] for row in expected]
    for row, original in zip(rows, expected, strict=True):
        if (name := row["image_id"]) in poison:
            assert (row["status"], row["error"]["stage"]) == ("failed", "decode")
            assert (name, row["error"]["kind"]) == (name, poison[name])
        else:
            assert row == original
    unchanged = {
        name: data
        for name, data in jobs.parts(done).items()
        if not poison.keys() & set(pq.read_table(done / name)["image_id"].to_pylist())
    }
    assert len(unchanged) >= 2
    assert unchanged.items() <= jobs.parts(sink).items()


@pytest.mark.soak  # tests/predict/test_ray_actor_pool.py tests what the driver does
@pytest.mark.parametrize("arrangement", ["fused", "streaming"])
def test_images_that_crash_the_models_stop_the_job_and_are_named(
    done, keras_files, tmp_path, arrangement
):
    """Only decoding is isolated; the models work on whole batches."""
    env = poisoned_env(write_stub(tmp_path / "stub"))
    files = {f"{i:02}.jpg": jobs.encoded_image(i) for i in range(4)}
    files |= {f"{i:02} fatal.jpg": jobs.encoded_image(i) for i in range(4, 8)}
    archive = jobs.write_files(tmp_path / "archive", files)
    sink = jobs.carry_programs(done, tmp_path / "sink")
    status, stderr = run(tmp_path, archive, sink, keras_files, env, **ARRANGEMENTS[arrangement])
    assert status == 1, stderr
    last = stderr.strip().splitlines()[-1]
    if arrangement == "fused":
        assert "crashed its worker 4 times" in last
        assert "'04 fatal.jpg' to '07 fatal.jpg'" in last
    else:
        assert "the models crashed their workers" in last
    status, stderr = run(tmp_path, archive, sink, keras_files, **ARRANGEMENTS[arrangement])
    assert status == 0, stderr
    assert [row["image_id"] for row in jobs.rows(sink)] == sorted(files)
