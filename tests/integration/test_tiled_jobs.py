"""Jobs with tiles on Ray: rows without tiles where images fit, same bytes in any arrangement."""

import pyarrow.parquet as pq
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.predict.job import predict
from tests.support import jobs

pytestmark = [pytest.mark.ray, pytest.mark.keras]
FUSED = ["run.engine=litert", "run.arrangement=fused", "run.gpus_per_actor=0"]
STREAMING = ["run.engine=litert", "run.arrangement=streaming", "run.gpus_per_actor=0"]


def run(source, sink, models, tiles, overrides):
    values = jobs.job(source, sink, models)
    for model in values["models"]:
        model |= {} if tiles is None else {"tiles": tiles}
    predict(parse_job(values, overrides), jobs.RecordingListener())
    return sink


def tables(sink):
    """Return the table of each file, without the metadata of the job."""
    return {
        path.name: pq.read_table(path).replace_schema_metadata() for path in sink.glob("*.parquet")
    }


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return jobs.write_files(tmp_path_factory.mktemp("archive"), jobs.archive_files(10))


def test_images_that_fit_a_tile_have_the_rows_of_a_job_without_tiles(
    archive, keras_files, ray_session, tmp_path
):
    untiled = tables(run(archive, tmp_path / "untiled", keras_files, None, FUSED))
    tiled = tables(run(archive, tmp_path / "tiled", keras_files, {"size": 61}, FUSED))
    assert untiled.keys() == tiled.keys()
    assert len(untiled) == 2
    for name, table in untiled.items():
        assert table.equals(tiled[name])


def test_a_tiled_job_writes_the_same_bytes_in_any_arrangement(
    archive, keras_files, ray_session, tmp_path
):
    tiles = {"overlap": 8}
    fused = run(archive, tmp_path / "fused", keras_files, tiles, FUSED)
    for name, overrides in {
        "streaming": STREAMING,
        "one actor": [*FUSED, "run.actors=1"],
    }.items():
        sink = jobs.carry_programs(fused, tmp_path / name)
        assert jobs.parts(run(archive, sink, keras_files, tiles, overrides)) == jobs.parts(fused)
    for row in jobs.rows(fused):
        if row["status"] == "ok":
            assert sum(area["area"] for area in row["mask_areas"]) == row["width"] * row["height"]
    sizes = {
        (row["heatmaps"][0]["height"], row["heatmaps"][0]["width"])
        for row in jobs.rows(fused)
        if row["heatmaps"]
    }
    assert len(sizes) == 3  # of an image without tiles and of two sizes with tiles
