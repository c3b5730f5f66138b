"""Relative paths of a job file are below its folder."""

import pytest

from cvbatch.config.loader import load
from cvbatch.config.locations import relative_to, with_sections
from cvbatch.config.predict import JobConfig

MODEL = {"task": "classification", "model": "nets/a.keras", "classes": "names.txt"}


def test_paths_are_below_the_folder_of_the_file():
    raw = {
        "source": {"uri": ["photos/", "../more"], "format": "auto"},
        "sink": "out",
        "models": [
            MODEL,
            {"model": "yolo", "weights": "w.h5", "classes": ["a"]},
            "b.keras",
            {"model": "c.keras", "outputs": [{"task": "regression"}, {"classes": "names.txt"}]},
        ],
        "run": {"batch_size": 4},
    }
    assert relative_to(with_sections(raw), "jobs/nightly") == {
        "source": {"uri": ["jobs/nightly/photos/", "jobs/more"], "format": "auto"},
        "sink": {"uri": "jobs/nightly/out"},
        "models": [
            MODEL | {"model": "jobs/nightly/nets/a.keras", "classes": "jobs/nightly/names.txt"},
            {"model": "yolo", "weights": "jobs/nightly/w.h5", "classes": ["a"]},
            {"model": "jobs/nightly/b.keras"},
            {
                "model": "jobs/nightly/c.keras",
                "outputs": [{"task": "regression"}, {"classes": "jobs/nightly/names.txt"}],
            },
        ],
        "run": {"batch_size": 4},
    }
    assert raw["sink"] == "out"


@pytest.mark.parametrize("path", ["s3://bucket/a", "/data", "~/data", "${ARCHIVE}/x", "file:///a"])
def test_uris_absolute_paths_and_variables_stay(path):
    raw = {"source": {"uri": [path]}, "sink": {"uri": path}}
    assert relative_to(raw, "jobs") == raw


def test_names_are_no_paths():
    raw = {"model": {"model": "MobileNetV2", "weights": "imagenet", "classes": "imagenet"}}
    assert relative_to(raw, "jobs") == raw


def test_values_of_the_command_line_are_relative_to_the_working_directory(tmp_path, monkeypatch):
    folder = tmp_path / "jobs"
    folder.mkdir()
    text = "source: photos\nsink: out\nmodels: [{task: classification, model: a.keras}]\n"
    (folder / "job.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    job = load(JobConfig, "jobs/job.yaml", ["source.uri=others"])
    assert job.source.uri == ["others"]
    assert job.sink.uri == "jobs/out"
    monkeypatch.chdir(folder)
    assert load(JobConfig, "job.yaml").sink.uri == "out"
