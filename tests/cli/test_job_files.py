"""Jobs without a job file, job files to start from, and schemas for editors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from cvbatch.cli import job_files
from cvbatch.cli.arguments import build_parser
from cvbatch.cli.job_files import JOB_KINDS
from cvbatch.cli.job_options import EXAMPLES, JOB_OPTIONS
from cvbatch.config.loader import load, parse, parse_job
from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import ConfigError, ModelError
from cvbatch.models.metadata import DEMO_FILES
from tests.support import jobs

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "jobs" / "examples").glob("*.yaml"))


def job_of(*words):
    """Return the job that a command line runs."""
    arguments = build_parser().parse_args(list(map(str, words)))
    file = job_files.read_job(arguments.command, arguments)
    return parse(JOB_KINDS[arguments.command], file.values, name=file.name), file


def plain(job):
    return job.model_dump(mode="json")


@pytest.mark.parametrize("command", JOB_OPTIONS)
def test_the_example_of_every_command_is_a_job(command):
    job, file = job_of(*EXAMPLES[command].split())
    assert plain(parse(JOB_KINDS[command], file.values)) == plain(job)
    assert file.notes == ()


def test_options_give_the_job_of_the_same_job_file():
    job, _ = job_of(
        *["predict", "photos/", "s3://more/", "--model", "demo_classifier", "--model"],
        *["demo_detector", "--classes", "a,b,c,d,e", "--batch-size", "8", "--out", "out/"],
        *["--set", "models.1.score_threshold=0.5"],
    )
    names = ["a", "b", "c", "d", "e"]
    wanted = {
        "source": {"uri": ["photos/", "s3://more/"]},
        "sink": {"uri": "out/"},
        "models": [
            {"task": "classification", "model": "demo_classifier", "weights": "demo"},
            {"task": "detection", "model": "demo_detector", "weights": "demo"},
        ],
        "run": {"batch_size": 8},
    }
    for model in wanted["models"]:
        model["classes"] = names
    wanted["models"][1]["score_threshold"] = 0.5
    assert plain(job) == plain(parse_job(wanted))


def test_options_replace_values_of_a_job_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("source: photos\nsink: out\nmodels: [MobileNetV2]\nrun: {batch_size: 4}\n")
    job, _ = job_of("predict", "others", "--config", path, "--batch-size", 16, "--heatmap")
    assert job.source.uri == ["others"]
    assert job.sink.uri == str(tmp_path / "out")
    assert job.run.batch_size == 16
    assert (job.models[0].model, job.models[0].weights) == ("MobileNetV2", "imagenet")
    assert job.models[0].heatmap.top_k == 1


def test_a_model_file_has_the_task_of_its_card_or_one_is_assumed(tmp_path):
    card = DEMO_FILES["demo_segmenter"]
    job, file = job_of("predict", "photos", "--model", card)
    assert (job.models[0].task, file.notes) == ("segmentation", ())
    plain_file = tmp_path / "net.keras"
    jobs.write_zip(plain_file, {"config.json": b"{}"})
    job, file = job_of("predict", "photos", "--model", plain_file)
    assert job.models[0].task == "classification"
    assert "classification is assumed" in file.notes[0]
    job, file = job_of("predict", "photos", "--model", plain_file, "--task", "segmentation")
    assert (job.models[0].task, file.notes) == ("segmentation", ())


@pytest.mark.parametrize("more", [(), ("--task", "classification", "--weights", "imagenet")])
def test_a_misspelled_network_is_refused_with_the_nearest_names(more):
    with pytest.raises(ModelError, match=r"'MobilNetV2' .*; did you mean MobileNetV2"):
        job_of("predict", "photos", "--model", "MobilNetV2", *more)


def test_one_value_is_for_all_models_and_another_number_is_refused():
    models = ["--model", "demo_classifier", "--model", "demo_segmenter"]
    tasks = ["--task", "classification", "--task", "segmentation", "--task", "detection"]
    with pytest.raises(ConfigError, match="--task is given 3 times for 2 models"):
        job_of("predict", "photos", *models, *tasks)
    with pytest.raises(ConfigError, match="add --model"):
        job_of("predict", "photos", "--task", "classification")
    with pytest.raises(ConfigError, match="--model missing; as in"):
        job_of("predict", "photos")


def test_an_explanation_without_sections_computes_grad_cam():
    job, _ = job_of("explain", "photos", "--model", "demo_classifier")
    assert job.gradcam is not None
    job, _ = job_of("explain", "photos", "--model", "demo_classifier", "--set", "patterns={}")
    assert job.gradcam is None


def test_the_written_job_is_the_job_that_was_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["predict", "photos/", "--model", "demo_classifier", "--heatmap"]
    job, file = job_of(*words)
    job_files.write_job("predict", job.sink.uri, file)
    written = tmp_path / "result" / "_cvbatch" / "job.yaml"
    monkeypatch.chdir("/")
    again = load(JobConfig, written)
    assert again.source.uri == [str(tmp_path / "photos") + "/"]
    assert again.sink.uri == str(tmp_path / "result")
    assert plain(again)["models"] == plain(job)["models"]


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_init_writes_a_short_valid_job_with_its_schema(tmp_path, kind):
    path = tmp_path / "job.yaml"
    written = job_files.init_job(kind, str(path))
    assert load(JOB_KINDS[kind], path)
    text = path.read_text()
    assert 8 <= len(text.splitlines()) <= 15
    schema = tmp_path / text.splitlines()[0].partition("$schema=")[2]
    assert written == (str(path), str(schema))
    jsonschema.validate(yaml.safe_load(text), json.loads(schema.read_text()))
    with pytest.raises(ConfigError, match="File exists"):
        job_files.init_job(kind, str(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_example_names_a_schema_that_it_fits(path):
    text = path.read_text()
    schema = path.parent / text.splitlines()[0].partition("$schema=")[2]
    jsonschema.validate(yaml.safe_load(text), json.loads(schema.read_text()))


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_the_schemas_of_the_docs_are_those_of_the_program(kind):
    stored = ROOT / "docs" / "schemas" / f"{kind}.json"
    assert stored.read_text() == job_files.json_schema(kind), f"cvbatch schema {kind} > {stored}"


JOBS = [
    ({}, True),
    ({"source": "photos/"}, True),
    ({"source": ["a", "b"], "sink": "out"}, True),
    ({"models": ["MobileNetV2"]}, True),
    ({"run": {"actors": "auto"}}, True),
    ({"source": {"uri": "a", "bit_depth": {"min": 0, "max": 4095}}}, True),
    ({"run": {"batch_sise": 8}}, False),
    ({"run": {"batch_size": 0}}, False),
    ({"models": []}, False),
    ({"models": [{"model": "a.keras", "outputs": [{"task": "embedding"}]}]}, True),
    ({"models": [{"model": "a.keras", "outputs": []}]}, False),
    ({"models": [{"model": "a.keras", "outputs": [{"task": "embedding", "model": "b"}]}]}, False),
    ({"models": [{"model": "a.keras", "top_k": 1, "outputs": [{"task": "embedding"}]}]}, False),
    ({"source": {"uri": "a", "format": "png"}}, False),
    ({"sink": 3}, False),
]


@pytest.mark.parametrize(("change", "is_valid"), JOBS)
def test_schema_and_program_agree(tmp_path, change, is_valid):
    model = {"task": "classification", "model": "demo_classifier", "weights": "demo"}
    values = {"source": {"uri": "a"}, "sink": {"uri": "b"}, "models": [model]} | change
    schema = json.loads(job_files.json_schema("predict"))
    assert jsonschema.Draft202012Validator(schema).is_valid(values) == is_valid
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    if is_valid:
        job_of("predict", "--config", path)
        return
    with pytest.raises(ConfigError):
        job_of("predict", "--config", path)


@pytest.mark.process
@pytest.mark.parametrize("arguments", ["schema predict", "completion zsh", "import --help"])
def test_a_closed_pipe_is_no_error(arguments):
    command = [sys.executable, "-m", "cvbatch", *arguments.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.process
def test_closed_streams_are_no_error():
    command = f"{sys.executable} -m cvbatch schema predict >&- 2>&-"
    assert subprocess.run(["sh", "-c", command]).returncode == 0


@pytest.mark.process
def test_the_completion_script_is_bash(tmp_path):
    script = tmp_path / "cvbatch.sh"
    command = [sys.executable, "-m", "cvbatch", "completion", "bash"]
    script.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    words = "COMP_WORDS=(cvbatch predict --mo); COMP_CWORD=2; source $0; _shtab_cvbatch; "
    shown = subprocess.run(
        ["bash", "-c", words + "echo ${COMPREPLY[@]}", script],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.split() == ["--model"]
