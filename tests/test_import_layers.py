"""Imports go only down the layers, and a prediction worker does not import TensorFlow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cvbatch

pytestmark = pytest.mark.process

ROOT = Path(cvbatch.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def may_import_ray(path: Path) -> bool:
    return path.parent.name == "distributed" or path.name.startswith("ray_")


def test_only_modules_named_after_ray_import_it():
    for path in MODULES:
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "ray" not in names or may_import_ray(path), path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cvbatch.planning.plan", {"tensorflow", "keras", "ray"}),
        ("cvbatch.images.decode", {"tensorflow", "keras", "ray"}),
        ("cvbatch.predict.steps", {"tensorflow", "keras", "ray"}),
        ("cvbatch.results.result", {"tensorflow", "keras", "ray"}),
        ("cvbatch.report.job", {"tensorflow", "keras", "ray"}),
        ("cvbatch.predict.job", {"tensorflow", "keras"}),
        ("cvbatch.train.job", {"tensorflow", "keras", "ray"}),
        ("cvbatch.evaluate.job", {"tensorflow", "keras", "ray"}),
        ("cvbatch.explain.job", {"tensorflow", "keras", "ray"}),
        ("cvbatch.cli.main", {"tensorflow", "keras", "ray", "pyarrow"}),
    ],
)
def test_importing_does_not_load(module, absent):
    code = f"import sys, {module}; print(*sorted({absent} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
