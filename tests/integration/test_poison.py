"""An image that crashes, hangs or exhausts its worker fails one row of a job."""

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
    values["source"] |= {"max_bytes": 10**6, "max_pixels": 10**6}  # little memory will do
    path = jobs.write_job(tmp_path / "job.yaml", values)
    status, _, told = jobs.cvbatch("predict", "--config", path, env=env)
    return status, told


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Five chunks of four images; good ones, as long as nobody loads the stub."""
    names = [f"{folder}/{number:02}.jpg" for folder in "ab" for number in range(10)]
    files = {
        name: poisoned(i, POISON[name]) if name in POISON else jobs.encoded_image(i)
        for i, name in enumerate(names)
    }
    return jobs.write_files(tmp_path_factory.mktemp("archive"), files)


@pytest.fixture(scope="module")
def done(archive, keras_files, tmp_path_factory):
    """The result of a run that meets no poison."""
    folder = tmp_path_factory.mktemp("done")
    status, told = run(folder, archive, folder / "sink", keras_files)
    assert status == 0, told
    assert {row["status"] for row in jobs.rows(folder / "sink")} == {"ok"}
    return folder / "sink"


WIRINGS = {
    "fused": {"arrangement": "fused"},
    # less than a CPU: else Ray Data would decode in the actors, as it cannot beside a GPU
    "streaming": {"arrangement": "streaming", "cpus_per_actor": 0.5},
    "streaming, decoded in the actors": {"arrangement": "streaming"},
}


@pytest.mark.parametrize(
    ("wiring", "kinds"),
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
def test_poison_fails_its_own_rows_and_changes_no_other(
    archive, done, keras_files, tmp_path, wiring, kinds
):
    env = poisoned_env(write_stub(tmp_path / "stub"), kinds)
    poison = {name: KINDS[kind] for name, kind in POISON.items() if kind in kinds}
    sink = jobs.carry_programs(done, tmp_path / "sink")
    status, told = run(tmp_path, archive, sink, keras_files, env, **WIRINGS[wiring])
    assert status == 0, told
    expected, rows = jobs.rows(done), jobs.rows(sink)
    assert [row["image_id"] for row in rows] == [row["image_id"] for row in expected]
    for row, good in zip(rows, expected, strict=True):
        if (name := row["image_id"]) in poison:
            assert (row["status"], row["error"]["stage"]) == ("failed", "decode")
            assert (name, row["error"]["kind"]) == (name, poison[name])
        else:
            assert row == good
    spared = {
        name: data
        for name, data in jobs.parts(done).items()
        if not poison.keys() & set(pq.read_table(done / name)["image_id"].to_pylist())
    }
    assert len(spared) >= 2
    assert spared.items() <= jobs.parts(sink).items()


@pytest.mark.soak  # what the driver does then, tests/predict/test_ray_actor_pool.py shows
@pytest.mark.parametrize("wiring", ["fused", "streaming"])
def test_what_the_models_die_of_stops_the_job_and_is_named(done, keras_files, tmp_path, wiring):
    """Care is for the decoder: other work cannot be taken from a worker image by image."""
    env = poisoned_env(write_stub(tmp_path / "stub"))
    files = {f"{i:02}.jpg": jobs.encoded_image(i) for i in range(4)}
    files |= {f"{i:02} fatal.jpg": jobs.encoded_image(i) for i in range(4, 8)}
    archive = jobs.write_files(tmp_path / "archive", files)
    sink = jobs.carry_programs(done, tmp_path / "sink")
    status, told = run(tmp_path, archive, sink, keras_files, env, **WIRINGS[wiring])
    assert status == 1, told
    last = told.strip().splitlines()[-1]
    if wiring == "fused":
        assert "took its worker down 4 times" in last
        assert "'04 fatal.jpg' to '07 fatal.jpg'" in last
    else:
        assert "the models took their workers down" in last
    status, told = run(tmp_path, archive, sink, keras_files, **WIRINGS[wiring])
    assert status == 0, told
    assert [row["image_id"] for row in jobs.rows(sink)] == sorted(files)
