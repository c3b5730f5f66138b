"""Without the extras, everything runs that does not build a network; the rest is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import jobs
from tests.support.results import random_predictions, write_predictions

pytestmark = pytest.mark.process

ABSENT = Path(__file__).parent / "support/without_extras"
ROOT = Path(__file__).parents[1]
REMEDY = "install it with pip install 'cvbatch[{}]'"
TENSORFLOW = REMEDY.format("tensorflow")


def run_python(code, *arguments):
    """Run code in a process without the packages of extras; return what it prints."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ABSENT), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


IMPORTED = """
import importlib, json, pkgutil, cvbatch
from cvbatch.core.errors import ModelError
refused = {}
for module in pkgutil.walk_packages(cvbatch.__path__, "cvbatch."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModelError as error:
            refused[module.name] = str(error)
print(json.dumps(refused))
"""


def test_a_module_is_imported_or_names_the_extra_that_it_needs():
    refused = json.loads(run_python(IMPORTED))
    assert {"cvbatch.models.frameworks", "cvbatch.models.file_safety"} <= refused.keys()
    assert all(line.endswith(TENSORFLOW) for line in refused.values()), refused
    packages = {name.split(".")[1] for name in refused}
    assert packages == {"models", "inference", "train", "explain"}
    loaded_by_workers = {"predictor", "engines", "chain", "runtimes", "programs", "postprocess"}
    assert not {f"cvbatch.inference.{name}" for name in loaded_by_workers} & refused.keys()


COMMANDS = """
import contextlib, io, json, sys
from cvbatch.cli.main import main
results = []
for arguments in json.loads(sys.argv[1]):
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
    results.append([status, output.getvalue(), errors.getvalue()])
print(json.dumps(results))
"""


def run_commands(*commands):
    """Run commands in one process; return (exit status, stdout, stderr) of each."""
    return json.loads(run_python(COMMANDS, json.dumps([list(map(str, c)) for c in commands])))


@pytest.fixture
def archive(tmp_path):
    """Two folders of images, which are their classes."""
    return jobs.write_files(tmp_path / "in", jobs.archive_files(4))


def test_commands_that_build_no_network(archive, tmp_path):
    images = [path.relative_to(archive).as_posix() for path in archive.glob("set-*/*")]
    predictions = {image: random_predictions(seed) for seed, image in enumerate(images)}
    result = write_predictions(tmp_path / "result", archive, predictions, ["classification"])
    kinds = ("predict", "train", "evaluate", "explain")
    commands = [
        ["--version"],
        ["--help"],
        ["completion", "bash"],
        ["models"],
        *([command, kind] for command in ("schema", "init") for kind in kinds),
        ["import", "folders", archive, tmp_path / "labels"],
        ["report", result, "--out", tmp_path / "page.html"],
        ["export", "fiftyone", result, tmp_path / "samples"],
    ]
    for command, (status, output, errors) in zip(commands, run_commands(*commands), strict=True):
        assert status == 0, (command, errors)
        assert "tensorflow" not in errors
        assert output or command[0] == "report", command
    assert (tmp_path / "page.html").is_file()


def test_commands_that_build_or_draw_are_refused_before_they_write(archive, tmp_path):
    sink, labels = tmp_path / "out", tmp_path / "labels"
    network = ["--model", "MobileNetV2"]
    commands = [
        ["predict", archive, *network, "--out", sink],
        ["predict", archive, *network, "--out", sink, "--dry-run"],
        ["import", "folders", archive, labels],
        ["train", labels, *network, "--out", sink, "--set", "source.splits.validation=null"],
        ["evaluate", archive, labels, "--out", sink],
        ["explain", archive, *network, "--out", sink],
        ["demo", "--out", sink],
        ["models", "MobileNetV2"],
    ]
    for command, (status, _, errors) in zip(commands, run_commands(*commands), strict=True):
        extra = "plots" if command[0] == "evaluate" else "tensorflow"
        if command[0] == "import":
            continue
        assert status == 2, (command, errors)
        last_line = errors.splitlines()[-1]
        assert last_line.endswith(f"is not installed; {REMEDY.format(extra)}"), command
        assert not sink.exists(), command
