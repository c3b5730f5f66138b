"""The examples of the README, of docs/result.md and of jobs/examples run."""

import ast
import shlex
import subprocess

import pytest
import yaml

from cvbatch.cli.job_files import JOB_KINDS
from cvbatch.config.evaluate import parse_evaluation
from cvbatch.config.explain import parse_explanation
from cvbatch.config.loader import load
from tests.docs.markdown import ROOT, blocks, read
from tests.support import jobs

README = read("README.md")
RESULT = read("docs/result.md")
EXAMPLES = sorted((ROOT / "jobs" / "examples").glob("*.yaml"))


def test_the_readme_is_short():
    assert len(README.split()) <= 1500


def test_the_evaluation_job_of_its_page_is_valid_and_shows_all_defaults():
    (text,) = blocks(read("docs/evaluation.md"), "yaml")
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
    for code in blocks(README, "python") + blocks(RESULT, "python"):
        scope = {}
        *before, last = ast.parse(code.replace("demo-out/result", str(out))).body
        exec(compile(ast.Module(before, []), "docs", "exec"), scope)
        value = eval(compile(ast.Expression(last.value), "docs", "eval"), scope)
        assert len(value) > 0
    import duckdb

    (query,) = blocks(RESULT, "sql")
    failures = duckdb.sql(query.replace("demo-out/result", str(out))).fetchall()
    assert [row[1:3] for row in failures] == [("decode", "not_an_image")]


def test_the_explanation_job_of_its_page_is_valid_and_shows_all_defaults():
    (text,) = blocks(read("docs/explain.md"), "yaml")
    raw = yaml.safe_load(text)
    job = parse_explanation(raw)
    sections = ("activations", "gradcam", "patterns", "weights", "run")
    defaults = parse_explanation({**raw, **{name: {} for name in sections}})
    assert job == defaults
    for name in (*sections, "dream"):
        assert set(raw[name]) == set(type(getattr(job, name)).model_fields), name


def test_make_help_lists_the_targets_of_the_readme():
    (commands,) = [block for block in blocks(README, "sh") if "make demo" in block]
    targets = [shlex.split(line, comments=True)[1] for line in commands.strip().splitlines()]
    assert targets == ["demo", "test"]
    help_text = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for target in [*targets, "help", "setup", "test-fast", "check", "bench"]:
        assert f"make {target} " in help_text.stdout
