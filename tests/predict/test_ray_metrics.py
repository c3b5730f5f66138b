"""What Prometheus reads of a job is what its files hold."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from cvbatch.predict.stage_timer import STAGES, StageTimer
from tests.support import jobs
from tests.support.crashing_images import poisoned
from tests.support.local_cluster import events_in, submission_id, until, working_folder

NAMES = {
    "cvbatch_images": {"run", "status"},
    "cvbatch_failures": {"run", "kind"},
    "cvbatch_bytes": {"run", "direction"},
    "cvbatch_stage_seconds": {"run", "stage"},
    "cvbatch_queue_depth": {"run", "stage"},
    "cvbatch_chunks_left": {"run"},
    "cvbatch_chunks": {"run"},
}


def test_nothing_done_took_nothing():
    assert StageTimer().seconds == dict.fromkeys(STAGES, 0.0)
    assert StageTimer.of([]).as_json() == StageTimer().as_json()


def test_each_second_is_counted_once_to_the_stage_that_took_it(monkeypatch):
    """Stages that ask one another: three things, for which each stage takes its own time."""
    now = [0.0]
    monkeypatch.setattr("cvbatch.predict.stage_timer.time.perf_counter", lambda: now[0])

    def taking(seconds, things):
        for thing in things:
            now[0] += seconds
            yield thing

    effort = StageTimer()
    read = effort.along("read", taking(1, "abc"))
    decoded = effort.along("decode", taking(10, read))
    now[0] += 10_000  # between the stages: nobody's
    with effort.at("write"):
        assert list(taking(1000, effort.along("predict", taking(100, decoded)))) == list("abc")
    now[0] += 10_000
    assert effort.seconds == {"read": 3, "decode": 30, "predict": 300, "write": 3000}
    twice = StageTimer.of([effort.as_json(), effort.as_json()])
    assert twice.seconds == {stage: 2 * s for stage, s in effort.seconds.items()}


def metrics_of(run, scraped):
    """Return the series of a run: (name without ray_, tag's value) → value."""
    found = {}
    for series, value in scraped.items():
        name, _, tags = series.partition("{")
        said = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        if name.startswith("ray_cvbatch_") and said.get("run") == run:
            name = name.removeprefix("ray_").removesuffix("_total")
            (own,) = [said[tag] for tag in NAMES[name] - {"run"}] or [""]
            found[name, own] = found.get((name, own), 0.0) + value
    return found


@pytest.mark.ray
@pytest.mark.keras
def test_the_endpoint_tells_of_a_job_while_it_runs_and_when_it_has_ended(
    two_nodes, keras_files, tmp_path
):
    names = [f"{i:02}.jpg" for i in range(8)]
    files = {name: jobs.encoded_image(i) for i, name in enumerate(names)}
    files |= {"00.jpg": b"no image", "01.jpg": b"", "06.jpg": poisoned(6, "wait")}
    source = jobs.write_files(tmp_path / "in", files)
    stub = Path(two_nodes.env["PYTHONPATH"].split(os.pathsep)[0])
    (stub / "go").unlink(missing_ok=True)
    run = {"chunk_images": 2, "engine": "litert", "image_timeout_s": 240.0}
    values = jobs.job(source, tmp_path / "sink", keras_files, **run)
    del values["models"][1:]
    folder = working_folder(tmp_path, predict=values)
    job_id = submission_id(folder, "predict")
    two_nodes.submitting(folder, "predict", "--no-wait", "--log", "json", job_id=job_id)
    until(lambda: len(jobs.parts(tmp_path / "sink")) == 3, "the chunks that do not wait")
    run_id = events_in(two_nodes.log(job_id))[0]["run"]

    def told():
        return metrics_of(run_id, two_nodes.head.scraped())

    midway = until(lambda: told().get(("cvbatch_chunks", "")) == 3 and told(), "three chunks")
    assert midway["cvbatch_images", "ok"] + midway["cvbatch_images", "failed"] == 6
    assert midway["cvbatch_chunks_left", ""] == 1
    assert {stage for name, stage in midway if name == "cvbatch_queue_depth"} == {
        "decode", "predict", "write",
    }  # fmt: skip
    (stub / "go").touch()
    ran = two_nodes.ended(job_id)
    assert ran.status == 0, ran.told

    rows = jobs.rows(tmp_path / "sink")
    failed = [row for row in rows if row["status"] == "failed"]
    after = until(lambda: told().get(("cvbatch_chunks", "")) == 4 and told(), "all chunks")
    assert after["cvbatch_images", "ok"] == len(rows) - len(failed) == 6
    assert after["cvbatch_images", "failed"] == len(failed) == 2
    assert after["cvbatch_failures", "decode/empty"] == 1
    assert after["cvbatch_failures", "decode/not_an_image"] == 1
    assert after["cvbatch_bytes", "read"] == sum(len(data) for data in files.values())
    sizes = sum(len(data) for data in jobs.parts(tmp_path / "sink").values())
    assert after["cvbatch_bytes", "written"] == sizes
    assert {stage for name, stage in after if name == "cvbatch_stage_seconds"} == set(STAGES)

    chunks = [event for event in ran.events if event["event"] == "chunk"]
    assert {f"part-{event['chunk']}.parquet" for event in chunks} == set(
        jobs.parts(tmp_path / "sink")
    )
    for stage in STAGES:
        seconds = sum(event["seconds"][stage] for event in chunks)
        assert after["cvbatch_stage_seconds", stage] == pytest.approx(seconds)
    (kept,) = (tmp_path / "sink" / "_cvbatch" / "runs").iterdir()
    assert json.loads(kept.read_bytes())["run"] == run_id


@pytest.mark.ray
def test_the_names_are_those_that_dashboards_ask_for():
    from cvbatch.predict.ray_metrics import METRIC_SPECS

    assert {name: {"run", meter.tag} - {""} for name, meter in METRIC_SPECS.items()} == NAMES
