"""Jobs submitted with `ray job submit` have the results and messages of local ones; metrics."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from cvbatch.predict.stage_timer import STAGES
from tests.support import datasets, jobs
from tests.support.crashing_images import poisoned
from tests.support.evaluations import write_result, write_truth
from tests.support.local_cluster import events_in, submission_id, working_folder
from tests.support.prometheus import metrics_of
from tests.support.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.keras]

CHUNKS = 6


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Six chunks; the workers of the third and fourth wait."""
    files = {f"{i:02}.jpg": jobs.encoded_image(i) for i in range(2 * CHUNKS)}
    files |= {f"{i:02}.jpg": poisoned(i, "wait") for i in (4, 6)}
    return jobs.write_files(tmp_path_factory.mktemp("archive"), files)


@pytest.fixture
def stub(two_nodes):
    """The stub's folder, without waiting workers and without the file that releases them."""
    folder = Path(two_nodes.env["PYTHONPATH"].split(os.pathsep)[0])
    for path in [*folder.glob("waiting-*"), *folder.glob("go")]:
        path.unlink()
    return folder


def prediction_job(archive, sink, models, **run):
    values = jobs.job(archive, sink, models, **{"chunk_images": 2, "batch_size": 2, **run})
    values["run"] |= {"engine": "litert", "image_timeout_s": 240.0}
    del values["models"][1:]
    return values


@pytest.fixture(scope="module")
def streamed(two_nodes, archive, keras_files, tmp_path_factory):
    """A finished job on a cluster where one node has CPUs and the other one the GPU."""
    (Path(two_nodes.env["PYTHONPATH"].split(os.pathsep)[0]) / "go").touch()
    folder = tmp_path_factory.mktemp("streamed")
    values = prediction_job(archive, folder / "sink", keras_files)
    finished = two_nodes.submit(working_folder(folder, predict=values), "predict")
    assert finished.status == 0, finished.log
    return finished, folder / "sink"


def test_a_prediction_succeeds(streamed):
    finished, sink = streamed
    assert finished.job["status"] == "SUCCEEDED"
    done = f"cvbatch: done, {2 * CHUNKS} images into {sink}, 0 failed"
    assert finished.last_line == f"{done}; next: cvbatch report {sink}"
    assert len(jobs.rows(sink)) == 2 * CHUNKS


def test_decoding_runs_on_the_cpu_node_and_models_on_the_gpu_node(two_nodes, streamed):
    job_id = streamed[0].job["job_id"]
    tasks = [task for task in two_nodes.state("tasks") if task["job_id"] == job_id]
    actors = [actor for actor in two_nodes.state("actors") if actor["job_id"] == job_id]
    decoded = [t["node_id"] for t in tasks if "_decode" in t["name"] and t["type"] != "ACTOR_TASK"]
    models = [a["node_id"] for a in actors if "_PredictActor" in a["name"] + a["class_name"]]
    assert set(decoded) == {two_nodes.head.node_id} and len(decoded) == CHUNKS
    assert set(models) == {two_nodes.gpu.node_id}


def test_an_invalid_job_file_is_reported_with_its_exit_status(
    two_nodes, archive, keras_files, tmp_path
):
    folder = working_folder(
        tmp_path, predict=prediction_job(archive, tmp_path / "sink", keras_files)
    )
    job_id = submission_id(folder, "predict")
    followed = two_nodes.submitting(folder, "predict", "--set", "run.batchsize=3", job_id=job_id)
    assert followed.returncode == 1  # Ray's status of every failed job
    assert "Job entrypoint command failed with exit code 2" in followed.stdout
    assert "run.batchsize: unknown key; did you mean batch_size?" in followed.stdout
    assert two_nodes.ended(job_id).status == 2
    assert not (tmp_path / "sink").exists()


def test_too_many_failures_exit_with_status_3(two_nodes, streamed, keras_files, tmp_path):
    source = jobs.write_files(tmp_path / "in", jobs.archive_files(2))
    sink = jobs.carry_programs(streamed[1], tmp_path / "sink")
    values = prediction_job(source, sink, keras_files, max_failure_fraction=0.0)
    finished = two_nodes.submit(working_folder(tmp_path, predict=values), "predict")
    assert finished.status == 3, finished.log
    assert "exit code 3" in finished.job["message"]
    assert "decode/empty 1" in finished.last_line
    assert len(jobs.rows(sink)) == 4


@pytest.mark.parametrize(
    "arrangement", ["fused", pytest.param("streaming", marks=pytest.mark.soak)]
)
def test_a_stopped_job_is_resumed(
    two_nodes, archive, streamed, keras_files, stub, tmp_path, arrangement
):
    done = streamed[1]
    sink = jobs.carry_programs(done, tmp_path / "sink")
    values = prediction_job(archive, sink, keras_files, arrangement=arrangement)
    folder = working_folder(tmp_path, predict=values)
    job_id = submission_id(folder, "predict")
    two_nodes.submitting(folder, "predict", "--no-wait", job_id=job_id)
    until(lambda: jobs.parts(sink) and list(stub.glob("waiting-*")), "parts and a waiting worker")
    two_nodes.stop(job_id)
    stopped = two_nodes.ended(job_id)
    assert stopped.job["status"] == "STOPPED"
    assert stopped.last_line == "cvbatch: interrupted; run the same command to resume"
    assert not (sink / "_cvbatch" / "lease.json").exists()
    before = jobs.parts(sink)
    assert 0 < len(before) < CHUNKS
    assert before.items() <= jobs.parts(done).items()
    (stub / "go").touch()
    finished = two_nodes.submit(folder, "predict", "--json")
    assert finished.status == 0, finished.log
    assert f'"num_chunks_before": {len(before)}' in finished.log
    assert jobs.parts(sink) == jobs.parts(done)


@pytest.mark.soak
def test_a_training_writes_its_model(two_nodes, tmp_path):
    rng = np.random.default_rng(0)
    source = datasets.put(
        tmp_path / "in",
        {
            f"{name}/{i}.png": cv2.imencode(".png", rng.integers(0, 256, (20, 24, 3)))[1].tobytes()
            for name in ("a", "b")
            for i in range(8)
        },
    )
    datasets.imported("folders", source, tmp_path / "data", split=(0.5, 0.25, 0.25))
    values = {
        "source": {"uri": str(tmp_path / "data")},
        "sink": {"uri": str(tmp_path / "sink")},
        "model": {
            "task": "classification", "model": "mini_xception", "weights": "random",
            "image_size": 24, "build": {"width": 4, "num_blocks": 1},
        },
        "training": {"recipe": "scratch", "epochs": 1, "batch_size": 2},
        "run": {"workers": 1, "gpus_per_worker": 0},
    }  # fmt: skip
    finished = two_nodes.submit(
        working_folder(tmp_path, train=values), "train", "--log", "json", "--json"
    )
    assert finished.status == 0, finished.log
    *_, epoch, summary, end = finished.events
    steps = -(-summary["images"]["train"] // 2)
    assert (epoch["event"], epoch["epoch"], epoch["step"]) == ("epoch", 1, steps)
    assert epoch["loss"] > 0
    assert (end["event"], end["status"]) == ("end", 0)
    assert end["message"].startswith(f"cvbatch: done, 1 epochs into {tmp_path / 'sink'}")
    assert (tmp_path / "sink" / "model.keras").stat().st_size > 0


def test_an_evaluation_writes_its_metrics(two_nodes, tmp_path):
    classes = {"labels": ["a", "b"]}
    ids = [f"{i}.jpg" for i in range(8)]
    write_result(
        tmp_path / "predictions", {i: {"labels": [(0, 0.9), (1, 0.1)]} for i in ids}, classes
    )
    truth = {i: {"labels": [(int(i in ("3.jpg", "7.jpg")), 1.0)]} for i in ids}
    write_truth(tmp_path / "truth", truth, classes)
    values = {
        "predictions": {"uri": str(tmp_path / "predictions")},
        "truth": {"uri": str(tmp_path / "truth")},
        "sink": {"uri": str(tmp_path / "sink")},
        "run": {"workers": 2},
    }
    finished = two_nodes.submit(
        working_folder(tmp_path, evaluate=values), "evaluate", "--log", "json", "--json"
    )
    assert finished.status == 0, finished.log
    *_, summary, end = finished.events
    done = f"cvbatch: done, 8 images compared into {tmp_path / 'sink'}; next: cvbatch report"
    assert end["message"].startswith(done)
    assert (end["event"], end["status"]) == ("end", 0)
    metrics = {figure["metric"]: figure["value"] for figure in summary["figures"]}
    assert metrics["top_1"] == pytest.approx(0.75)
    state = json.loads((tmp_path / "sink" / "_cvbatch" / "evaluation.json").read_bytes())
    assert state["is_complete"]


def test_the_endpoint_reports_a_job_while_it_runs_and_after_it_ended(
    two_nodes, stub, keras_files, tmp_path
):
    names = [f"{i:02}.jpg" for i in range(8)]
    files = {name: jobs.encoded_image(i) for i, name in enumerate(names)}
    files |= {"00.jpg": b"no image", "01.jpg": b"", "06.jpg": poisoned(6, "wait")}
    source = jobs.write_files(tmp_path / "in", files)
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

    chunks = [event for event in ran.events if event.get("event") == "chunk"]
    assert {f"part-{event['chunk']}.parquet" for event in chunks} == set(
        jobs.parts(tmp_path / "sink")
    )
    for stage in STAGES:
        seconds = sum(event["seconds"][stage] for event in chunks)
        assert after["cvbatch_stage_seconds", stage] == pytest.approx(seconds)
    (summary,) = (tmp_path / "sink" / "_cvbatch" / "runs").iterdir()
    assert json.loads(summary.read_bytes())["run"] == run_id
