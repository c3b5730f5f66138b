"""Prometheus metrics of a job agree with its files."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from cvbatch.predict.stage_timer import STAGES, StageTimer
from tests.support import jobs
from tests.support.crashing_images import poisoned
from tests.support.local_cluster import events_in, submission_id, working_folder
from tests.support.waiting import until

NAMES = {
    "cvbatch_images": {"run", "status"},
    "cvbatch_failures": {"run", "kind"},
    "cvbatch_bytes": {"run", "direction"},
    "cvbatch_stage_seconds": {"run", "stage"},
    "cvbatch_queue_depth": {"run", "stage"},
    "cvbatch_chunks_left": {"run"},
    "cvbatch_chunks": {"run"},
}


def test_a_new_timer_is_empty():
    assert StageTimer().seconds == dict.fromkeys(STAGES, 0.0)
    assert StageTimer.from_json([]).as_json() == StageTimer().as_json()


def test_each_second_counts_once_for_the_stage_that_took_it(monkeypatch):
    """Nested stages process three items, each stage with its own duration."""
    now = [0.0]
    monkeypatch.setattr("cvbatch.predict.stage_timer.time.perf_counter", lambda: now[0])

    def taking(seconds, items):
        for item in items:
            now[0] += seconds
            yield item

    timer = StageTimer()
    read = timer.measure_items("read", taking(1, "abc"))
    decoded = timer.measure_items("decode", taking(10, read))
    now[0] += 10_000  # outside the stages
    with timer.measure("write"):
        assert list(taking(1000, timer.measure_items("predict", taking(100, decoded)))) == list(
            "abc"
        )
    now[0] += 10_000
    assert timer.seconds == {"read": 3, "decode": 30, "predict": 300, "write": 3000}
    doubled = StageTimer.from_json([timer.as_json(), timer.as_json()])
    assert doubled.seconds == {stage: 2 * s for stage, s in timer.seconds.items()}


def metrics_of(run, scraped):
    """Return the series of a run: (name without ray_, tag's value) → value."""
    series_of_run = {}
    for series, value in scraped.items():
        name, _, tags = series.partition("{")
        labels = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        if name.startswith("ray_cvbatch_") and labels.get("run") == run:
            name = name.removeprefix("ray_").removesuffix("_total")
            (value_of_tag,) = [labels[tag] for tag in NAMES[name] - {"run"}] or [""]
            series_of_run[name, value_of_tag] = series_of_run.get((name, value_of_tag), 0.0) + value
    return series_of_run


@pytest.mark.ray
@pytest.mark.keras
def test_the_endpoint_reports_a_job_while_it_runs_and_after_it_ended(
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

    def scraped():
        return metrics_of(run_id, two_nodes.head.scraped())

    running = until(
        lambda: scraped().get(("cvbatch_chunks", "")) == 3 and scraped(), "three chunks"
    )
    assert running["cvbatch_images", "ok"] + running["cvbatch_images", "failed"] == 6
    assert running["cvbatch_chunks_left", ""] == 1
    assert {stage for name, stage in running if name == "cvbatch_queue_depth"} == {
        "decode", "predict", "write",
    }  # fmt: skip
    (stub / "go").touch()
    ran = two_nodes.ended(job_id)
    assert ran.status == 0, ran.log

    rows = jobs.rows(tmp_path / "sink")
    failed = [row for row in rows if row["status"] == "failed"]
    after = until(lambda: scraped().get(("cvbatch_chunks", "")) == 4 and scraped(), "all chunks")
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
    (summary,) = (tmp_path / "sink" / "_cvbatch" / "runs").iterdir()
    assert json.loads(summary.read_bytes())["run"] == run_id


@pytest.mark.ray
def test_names_and_tags_are_those_of_the_dashboards():
    from cvbatch.predict.ray_metrics import METRIC_SPECS

    assert {name: {"run", spec.tag} - {""} for name, spec in METRIC_SPECS.items()} == NAMES
