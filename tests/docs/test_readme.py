"""The examples of the README, of the docs and of jobs/examples run and show all defaults."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from cvbatch.cli.job_files import JOB_KINDS
from cvbatch.config.evaluate import parse_evaluation
from cvbatch.config.explain import parse_explanation
from cvbatch.config.loader import load, parse_job
from cvbatch.config.predict import JobConfig
from cvbatch.config.train import TrainJob, parse_training
from tests.support import jobs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "jobs" / "examples").glob("*.yaml"))


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_job_file_of_the_readme_is_valid_and_shows_all_defaults():
    text, _ = blocks("yaml")
    raw = yaml.safe_load(text)
    job = parse_job(raw)
    assert [model.task for model in job.models] == ["classification", "segmentation", "detection"]
    defaults = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": raw["models"]})
    assert job.run == defaults.run
    assert set(raw["run"]) == set(JobConfig.model_fields["run"].annotation.model_fields)


def test_the_training_job_of_the_readme_is_valid_and_shows_all_defaults():
    _, text = blocks("yaml")
    raw = yaml.safe_load(text)
    job = parse_training(raw)
    defaults = parse_training({**raw, "source": {"uri": "i"}, "training": {}, "run": {}})
    assert (job.training, job.run) == (defaults.training, defaults.run)
    assert job.source.splits == defaults.source.splits
    for section in ("training", "run"):
        assert set(raw[section]) == set(TrainJob.model_fields[section].annotation.model_fields)


def test_the_evaluation_job_of_its_page_is_valid_and_shows_all_defaults():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    raw = yaml.safe_load(text)
    job = parse_evaluation(raw)
    defaults = parse_evaluation(
        {**raw, "evaluation": {"class_map": raw["evaluation"]["class_map"]}}
    )
    assert job.evaluation == defaults.evaluation
    assert set(raw["evaluation"]) == set(type(job.evaluation).model_fields)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_starts_with_its_command_and_is_valid(path, monkeypatch):
    monkeypatch.setenv("ARCHIVE", "s3://archive")
    monkeypatch.setenv("RESULTS", "s3://results")
    _, first, *_ = path.read_text(encoding="utf-8").splitlines()
    command = path.name.split("-")[0]
    assert first == f"# cvbatch {command} --config jobs/examples/{path.name}"
    assert load(JOB_KINDS[command], path).sink.uri


@pytest.mark.ray
@pytest.mark.keras
def test_the_smoke_job_and_the_code_examples_run(tmp_path):
    out = tmp_path / "result"
    status, _, stderr = jobs.cvbatch(
        "predict", "--config", "jobs/examples/predict-smoke.yaml",
        "--set", f"sink.uri={out}", cwd=ROOT,
    )  # fmt: skip
    assert status == 0, stderr
    assert f"cvbatch: done, 12 images into {out}, 1 failed" in stderr.splitlines()[-1]
    for code in blocks("python"):
        scope = {}
        *before, last = ast.parse(code.replace("demo-out/result", str(out))).body
        exec(compile(ast.Module(before, []), "README.md", "exec"), scope)
        value = eval(compile(ast.Expression(last.value), "README.md", "eval"), scope)
        assert len(value) > 0
    import duckdb

    (query,) = blocks("sql")
    failures = duckdb.sql(query.replace("demo-out/result", str(out))).fetchall()
    assert [row[1:3] for row in failures] == [("decode", "not_an_image")]


def test_the_explanation_job_of_its_page_is_valid_and_shows_all_defaults():
    page = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    raw = yaml.safe_load(text)
    job = parse_explanation(raw)
    sections = ("activations", "gradcam", "patterns", "weights", "run")
    defaults = parse_explanation({**raw, **{name: {} for name in sections}})
    assert job == defaults
    for name in (*sections, "dream"):
        assert set(raw[name]) == set(type(getattr(job, name)).model_fields), name


def test_make_help_lists_the_targets_of_the_readme():
    (commands,) = [block for block in blocks("sh") if "make demo" in block]
    targets = [shlex.split(line, comments=True)[1] for line in commands.strip().splitlines()]
    assert targets == ["demo", "test"]
    help_text = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for target in [*targets, "help", "setup", "test-fast", "check", "bench"]:
        assert f"make {target} " in help_text.stdout
