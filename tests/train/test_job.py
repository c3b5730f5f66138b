"""A training job on Ray: its results, its errors, and how it resumes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from cvbatch.config.train import parse_training
from cvbatch.core.errors import ConfigError, RefusedError, SinkError, SourceError
from cvbatch.core.progress import Listener
from cvbatch.storage.lease import LEASE_PATH
from cvbatch.train.job import train
from tests.support import datasets, jobs
from tests.support.lease_holder import FAR, lease_holder, tree
from tests.support.waiting import has_ended, until

COLOURS = {"blue": (200, 60, 40), "green": (40, 200, 60), "red": (60, 40, 200)}  # BGR


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """Return a data set of noisy squares in three colours, 16 of each."""
    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    files = {}
    for name, colour in COLOURS.items():
        for i in range(16):
            pixels = np.clip(rng.normal(colour, 25, (20, 24, 3)), 0, 255).astype(np.uint8)
            files[f"{name}/{i:02d}.png"] = cv2.imencode(".png", pixels)[1].tobytes()
    source = datasets.put(folder / "in", files)
    datasets.imported("folders", source, folder / "out", split=(0.6, 0.2, 0.2))
    return folder / "out"


def job(labels, sink_folder, **sections):
    raw = {
        "source": {"uri": str(labels)},
        "sink": {"uri": str(sink_folder)},
        "model": {
            "task": "classification",
            "model": "mini_xception",
            "weights": "random",
            "image_size": 24,
            "build": {"width": 4, "num_blocks": 1},
        },
        "training": {
            "recipe": "scratch", "epochs": 8, "batch_size": 4, "learning_rate": 0.02,
            "schedule": "constant",
        },
        "run": {"workers": 2, "cpus_per_worker": 0.5, "gpus_per_worker": 0},
    }  # fmt: skip
    for section, values in sections.items():
        raw[section] = {**raw[section], **values}
    return raw


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


REFUSALS = {
    "no masks": (
        {"model": {"task": "segmentation"}},
        SourceError,
        "has no column 'mask', which this task requires",
    ),
    "no such split": (
        {"source": {"splits": {"train": "trian"}}},
        SourceError,
        r"no labelled image belongs to split 'trian' \(train\); known splits: 't",
    ),
    "too few images": (
        {"training": {"batch_size": 64}},
        ConfigError,
        "needs 128 images per step, but there are .* set training.batch_size: 1",
    ),
    "too many workers": ({"run": {"workers": 5000}}, ConfigError, "run.workers: 5000 with 0.5 CPU"),
    "the labels' own folder": (
        {"sink": {"uri": "SOURCE"}},
        SinkError,
        "contains _cvbatch/import.json",
    ),
    "weights of unknown classes": (
        {"training": {"class_weights": {"gren": 2}}},
        ConfigError,
        "the data has no class 'gren'; did you mean green",
    ),
    "no data": ({"source": {"uri": "/nowhere/at/all"}}, SourceError, "does not exist"),
}


@pytest.mark.parametrize(("sections", "kind", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_writes_nothing(sections, kind, message, colours, tmp_path):
    sections = json.loads(json.dumps(sections).replace("SOURCE", str(colours)))
    before = files(colours)
    with pytest.raises(kind, match=message) as caught:
        train(parse_training(job(colours, tmp_path / "out", **sections)), Listener())
    assert isinstance(caught.value, RefusedError)
    assert not (tmp_path / "out").exists() and files(colours) == before


def test_data_of_one_class_is_refused(tmp_path):
    files = {f"cat/{i}.png": datasets.picture(seed=i) for i in range(8)}
    source = datasets.put(tmp_path / "in", files)
    datasets.imported("folders", source, tmp_path / "labels", split=(0.5, 0.5, 0))
    with pytest.raises(
        SourceError, match="one class, 'cat', and classification needs at least two"
    ):
        train(parse_training(job(tmp_path / "labels", tmp_path / "out")), Listener())
    assert not (tmp_path / "out").exists()


def test_resume_without_a_training_is_refused(colours, tmp_path):
    with pytest.raises(SinkError, match="contains no training; omit --resume"):
        train(parse_training(job(colours, tmp_path / "out")), Listener(), resume=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_sink_in_use_is_refused(colours, tmp_path, overwrite):
    sink = tmp_path / "out"
    for name in ("model.keras", "_cvbatch/training/checkpoint", "_cvbatch/training.json"):
        datasets.put(sink, {name: "of another run"})
    with lease_holder(sink) as process:
        before = tree(sink)
        with pytest.raises(SinkError, match=rf"in use by .*process {process.pid}\)"):
            train(parse_training(job(colours, sink)), Listener(), overwrite=overwrite)
        assert tree(sink) == before


@pytest.mark.keras
@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"metric": "ap50"}}, "training.metric: 'ap50' is not a metric of .*accur"),
        (
            {"run": {"worker_memory_bytes": 60_000}},
            "a step needs at least .* each worker has 60,000",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_refused(sections, message, colours, tmp_path):
    with pytest.raises(RefusedError, match=message):
        train(parse_training(job(colours, tmp_path / "out", **sections)), Listener())
    assert not (tmp_path / "out").exists()


def wait_for(condition, process):
    """Return once the condition is true; fail if the process ends before."""

    def checked():
        assert process.poll() is None, process.stderr.read()
        return condition()

    until(checked, "the condition")


def start_driver(path, *options):
    """Start the training of a job file in a process group of its own."""
    command = [sys.executable, "-m", "cvbatch", "train", "--config", str(path), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.ray
@pytest.mark.keras
def test_two_workers_of_which_one_is_killed_train_a_model_that_predicts(colours, tmp_path):
    sink = tmp_path / "out"
    path = jobs.write_job(tmp_path / "job.yaml", job(colours, sink, training={"epochs": 12}))
    driver = start_driver(path, "--json")
    wait_for(lambda: (sink / "_cvbatch/training/checkpoint_manager_snapshot.json").exists(), driver)
    workers = [pid for pid, line in descendants(driver.pid).items() if "RayTrainWorker" in line]
    assert len(workers) == 2
    os.kill(max(workers), signal.SIGKILL)
    out, stderr = driver.communicate(timeout=300)
    assert driver.returncode == 0, stderr
    assert "cvbatch: done, 12 epochs into" in stderr.splitlines()[-1]
    summary = json.loads(out)
    assert (summary["workers"], summary["epochs"]) == (2, 12)
    assert summary["steps"] == 12 * -(-summary["images"]["train"] // 8)
    assert summary["metrics"]["test"]["accuracy"] > 0.9
    outputs = [path for path in files(sink) if not path.startswith("_")]
    assert outputs == sorted(
        ["config.yaml", "curves.png", "curves.svg", "history.json", "history.parquet",
         "metrics.json", "model.keras"]
    )  # fmt: skip
    json_epochs = [row["epoch"] for row in json.loads((sink / "history.json").read_bytes())]
    assert json_epochs == list(range(1, 13))
    history = pq.read_table(sink / "history.parquet").to_pylist()
    assert [row["epoch"] for row in history] == list(range(1, 13))
    assert {"val_loss", *(f"recall/{name}" for name in COLOURS)} <= history[0].keys()
    num_validation = summary["images"]["validation"]
    assert f"{num_validation} images: chance decides its metrics" in summary["notes"][0]
    assert summary["notes"][1].startswith(f"best epoch: {summary['best_epoch']} of 12, accuracy ")
    assert json.loads((sink / "metrics.json").read_bytes()) == summary["metrics"]
    resolved = parse_training(yaml.safe_load((sink / "config.yaml").read_bytes()))
    assert (resolved.run.workers, resolved.training.metric) == (2, "accuracy")

    before = (sink / "model.keras").read_bytes()
    status, _, stderr = jobs.cvbatch("train", "--config", path)
    assert status == 0 and "nothing to do, 12 epochs into" in stderr
    assert (sink / "model.keras").read_bytes() == before
    status, _, stderr = jobs.cvbatch("train", "--config", path, "--set", "training.epochs=13")
    assert status == 2 and "contains another training" in stderr

    predicted = {
        "source": {"uri": str(colours), "format": "parquet"},
        "sink": {"uri": str(tmp_path / "predicted")},
        "models": [{"task": "classification", "model": str(sink / "model.keras"), "top_k": 1}],
    }
    path = jobs.write_job(tmp_path / "predict.yaml", predicted)
    status, _, stderr = jobs.cvbatch("predict", "--config", path)
    assert status == 0, stderr
    labels = [row["labels"][0]["label"] for row in jobs.rows(tmp_path / "predicted")]
    assert len(labels) == 48 and set(labels) == set(COLOURS)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.keras
def test_a_killed_driver_resumes_to_the_same_number_of_steps(colours, tmp_path):
    sink = tmp_path / "out"
    raw = job(colours, sink, run={"workers": 1}, training={"epochs": 20})
    path = jobs.write_job(tmp_path / "job.yaml", raw)
    driver = start_driver(path)
    snapshot = sink / "_cvbatch/training/checkpoint_manager_snapshot.json"
    wait_for(lambda: snapshot.exists(), driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert json.loads((sink / LEASE_PATH).read_bytes())["pid"] == driver.pid
    assert not (sink / "model.keras").exists()
    status, out, stderr = jobs.cvbatch("train", "--config", path, "--json", "--resume")
    assert status == 0, stderr
    assert "resuming" in stderr and "epoch 1 ·" not in stderr
    summary = json.loads(out)
    assert (summary["epochs"], summary["steps"]) == (20, 20 * -(-summary["images"]["train"] // 4))
    epochs = [row["epoch"] for row in json.loads((sink / "history.json").read_bytes())]
    assert epochs == list(range(1, 21))


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.keras
def test_a_training_locks_its_sink_and_stops_if_it_loses_the_lease(colours, tmp_path):
    sink = tmp_path / "out"
    raw = job(colours, sink, run={"workers": 1}, training={"epochs": 100_000})
    driver = start_driver(jobs.write_job(tmp_path / "job.yaml", raw))
    try:
        wait_for((sink / "history.json").exists, driver)
        with pytest.raises(SinkError, match=rf"in use by .*process {driver.pid}\)"):
            train(parse_training(raw), Listener(), overwrite=True)
        assert list((sink / "_cvbatch/training").glob("checkpoint_*"))
        num_epochs = len(json.loads((sink / "history.json").read_bytes()))
        wait_for(lambda: len(json.loads((sink / "history.json").read_bytes())) > num_epochs, driver)

        workers = [pid for pid, line in descendants(driver.pid).items() if "RayTrainWorker" in line]
        assert workers
        driver.send_signal(signal.SIGSTOP)  # it hangs; its workers continue
        (tmp_path / "far").write_bytes(FAR.to_json())
        (tmp_path / "far").replace(sink / LEASE_PATH)  # atomically
        until(lambda: all(map(has_ended, workers)), "the end of the workers")
        driver.send_signal(signal.SIGCONT)
        stderr = driver.communicate(timeout=300)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
    assert driver.returncode == 1, stderr
    assert "taken over by a run on far.example" in stderr.splitlines()[-1]
    assert (sink / LEASE_PATH).read_bytes() == FAR.to_json()
    assert not (sink / "model.keras").exists()


def descendants(pid):
    """Return the process and all its descendants, with their command lines."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                folder.joinpath("stat").read_text().rsplit(")")[1].split()[1]
            )
            lines[int(folder.name)] = folder.joinpath("cmdline").read_bytes().decode()
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process has ended
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {number: lines[number] for number in below if number in lines}


@pytest.mark.soak  # tests/train/test_trainer.py has the law; this starts Ray Train twice
@pytest.mark.ray
@pytest.mark.keras
def test_a_nan_loss_stops_and_names_the_step(colours, tmp_path):
    raw = job(colours, tmp_path / "out", run={"workers": 1})
    raw["training"] |= {"learning_rate": 1e30, "optimizer": "sgd"}
    path = jobs.write_job(tmp_path / "job.yaml", raw)
    status, _, stderr = jobs.cvbatch("train", "--config", path)
    assert status == 1
    assert "cvbatch: step " in stderr and "lower the learning rate" in stderr.splitlines()[-1]
    assert not (tmp_path / "out/model.keras").exists()
