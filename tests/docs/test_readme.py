"""What the README and the examples say is what happens."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from cvbatch.config.evaluate import load_evaluation, parse_evaluation
from cvbatch.config.explain import load_explanation, parse_explanation
from cvbatch.config.loader import load_job, parse_job
from cvbatch.config.predict import JobConfig
from cvbatch.config.train import TrainJob, load_training, parse_training
from tests.support import jobs

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOADERS = {
    "predict": load_job,
    "train": load_training,
    "evaluate": load_evaluation,
    "explain": load_explanation,
}
EXAMPLES = sorted((ROOT / "jobs" / "examples").glob("*.yaml"))


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_job_file_of_the_readme_is_one_and_shows_every_default():
    text, _ = blocks("yaml")
    raw = yaml.safe_load(text)
    job = parse_job(raw)
    assert [model.task for model in job.models] == ["classification", "segmentation", "detection"]
    plain = parse_job({"source": {"uri": "i"}, "sink": {"uri": "o"}, "models": raw["models"]})
    assert job.run == plain.run
    assert set(raw["run"]) == set(JobConfig.model_fields["run"].annotation.model_fields)


def test_the_training_job_of_the_readme_is_one_and_shows_every_default():
    _, text = blocks("yaml")
    raw = yaml.safe_load(text)
    job = parse_training(raw)
    plain = parse_training({**raw, "source": {"uri": "i"}, "training": {}, "run": {}})
    assert (job.training, job.run) == (plain.training, plain.run)
    assert job.source.splits == plain.source.splits
    for section in ("training", "run"):
        assert set(raw[section]) == set(TrainJob.model_fields[section].annotation.model_fields)


def test_the_evaluation_job_of_its_page_is_one_and_shows_every_default():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    raw = yaml.safe_load(text)
    job = parse_evaluation(raw)
    plain = parse_evaluation({**raw, "evaluation": {"class_map": raw["evaluation"]["class_map"]}})
    assert job.evaluation == plain.evaluation
    assert set(raw["evaluation"]) == set(type(job.evaluation).model_fields)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_opens_with_its_command_and_is_a_job(path, monkeypatch):
    monkeypatch.setenv("ARCHIVE", "s3://archive")
    monkeypatch.setenv("RESULTS", "s3://results")
    first = path.read_text(encoding="utf-8").splitlines()[0]
    command = path.name.split("-")[0]
    assert first == f"# cvbatch {command} --config jobs/examples/{path.name}"
    assert LOADERS[command](path).sink.uri


@pytest.mark.ray
@pytest.mark.keras
def test_the_smoke_job_and_the_one_liners(tmp_path):
    out = tmp_path / "result"
    status, _, told = jobs.cvbatch(
        "predict", "--config", "jobs/examples/predict-smoke.yaml",
        "--set", f"sink.uri={out}", cwd=ROOT,
    )  # fmt: skip
    assert status == 0, told
    assert told.strip().endswith(f"cvbatch: done, 12 images into {out}, 1 failed")
    here = {"demo-out/result": str(out)}
    for code in blocks("python"):
        text = code
        for said, meant in here.items():
            text = text.replace(said, meant)
        scope = {}
        *before, last = ast.parse(text).body
        exec(compile(ast.Module(before, []), "README.md", "exec"), scope)
        shown = eval(compile(ast.Expression(last.value), "README.md", "eval"), scope)
        assert len(shown) > 0
    import duckdb

    (query,) = blocks("sql")
    failures = duckdb.sql(query.replace("demo-out/result", str(out))).fetchall()
    assert [row[1:3] for row in failures] == [("decode", "not_an_image")]


def test_the_explanation_job_of_its_page_is_one_and_shows_every_default():
    page = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    raw = yaml.safe_load(text)
    job = parse_explanation(raw)
    sections = ("activations", "gradcam", "patterns", "weights", "run")
    plain = parse_explanation({**raw, **{name: {} for name in sections}})
    assert job == plain
    for name in (*sections, "dream"):
        assert set(raw[name]) == set(type(getattr(job, name)).model_fields), name


def test_the_two_commands_are_targets_that_help_lists():
    (commands,) = [block for block in blocks("sh") if "make demo" in block]
    targets = [shlex.split(line, comments=True)[1] for line in commands.strip().splitlines()]
    assert targets == ["demo", "test"]
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in [*targets, "help", "setup", "test-fast", "check", "bench"]:
        assert f"make {target} " in said.stdout
