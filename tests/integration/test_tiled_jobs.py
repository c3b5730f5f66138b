"""Whole jobs with tiles on a real Ray: plain rows where images fit, one result on any wiring."""

from dataclasses import dataclass, field

import pyarrow.parquet as pq
import pytest

from cvbatch.config.loader import parse_job
from cvbatch.predict.job import predict
from tests.support import jobs

pytestmark = [pytest.mark.ray, pytest.mark.keras]
FUSED = ["run.engine=litert", "run.arrangement=fused", "run.gpus_per_actor=0"]
STREAMING = ["run.engine=litert", "run.arrangement=streaming", "run.gpus_per_actor=0"]


@dataclass
class Ear:
    """A listener that counts what it hears."""

    heard: list[object] = field(default_factory=list)

    def info(self, line):
        self.heard.append(line)

    def listed(self, num_names):
        self.heard.append(num_names)

    def started(self, num_chunks, num_images):
        self.heard.append((num_chunks, num_images))

    def written(self, report, summary):
        self.heard.append(report)


def run(source, sink, models, tiles, overrides):
    values = jobs.job(source, sink, models)
    for one in values["models"]:
        one |= {} if tiles is None else {"tiles": tiles}
    predict(parse_job(values, overrides), Ear())
    return sink


def tables(sink):
    """Return each file's rows as they lie in it, without what the footer says of the job."""
    return {
        path.name: pq.read_table(path).replace_schema_metadata() for path in sink.glob("*.parquet")
    }


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return jobs.write_files(tmp_path_factory.mktemp("archive"), jobs.archive_files(10))


def test_rows_are_those_of_a_plain_job_where_every_image_fits_a_tile(
    archive, keras_files, ray_session, tmp_path
):
    plain = tables(run(archive, tmp_path / "plain", keras_files, None, FUSED))
    tiled = tables(run(archive, tmp_path / "tiled", keras_files, {"size": 61}, FUSED))
    assert plain.keys() == tiled.keys()
    assert len(plain) == 2
    for name, table in plain.items():
        assert table.equals(tiled[name])


def test_a_job_that_cuts_gives_the_same_bytes_on_any_wiring(
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
    assert len(sizes) == 3  # of an image that is not cut, and of two kinds that are
