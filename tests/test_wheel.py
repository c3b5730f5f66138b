"""A wheel contains the whole package, and requires TensorFlow only in the extras that need it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel that is built from a copy of the project; building writes into its folder."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(
        ROOT / "cvbatch", copy / "cvbatch", ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run(
        [sys.executable, "-c", BUILD, str(copy)], cwd=copy, capture_output=True, check=True
    )
    (path,) = copy.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_a_wheel_contains_every_file_of_the_package(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "cvbatch").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel.namelist() if name.startswith("cvbatch/")} == files


def packages(metadata, *extras):
    """Return the packages that an installation requires, with those of extras of its own."""
    names = set()
    for line in metadata.get_all("Requires-Dist"):
        requirement = Requirement(line)
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        ):
            names.add(requirement.name)
            names |= (
                packages(metadata, *requirement.extras) if requirement.name == "cvbatch" else set()
            )
    return names


def test_extras_of_a_wheel(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    metadata = Parser().parsestr(wheel.read(name).decode())
    networks = {"tensorflow", "keras", "h5py"}
    assert set(metadata.get_all("Provides-Extra")) >= {"worker", "tensorflow", "gpu", "hub", "onnx"}
    assert not networks & packages(metadata, "worker", "onnx")
    for extra in ("tensorflow", "gpu", "hub", "demo"):
        assert networks <= packages(metadata, extra)
    assert "onnxruntime" in packages(metadata, "onnx")
