"""A finished result over a small archive, for tests of what is made of results."""

from __future__ import annotations

import pytest

from tests.support import jobs
from tests.support.datasets import picture
from tests.support.results import SIZE, predicted, saw


@pytest.fixture
def seen():
    """What was seen in each image: image_id → as `saw` says it."""
    return {f"set/i {n:02d}.png": saw(n) for n in range(12)}


@pytest.fixture
def result(tmp_path, seen):
    """The result over images that hold it, and two that failed."""
    files = {name: picture(*SIZE, seed=n) for n, name in enumerate(seen)}
    jobs.write_files(tmp_path / "images", files | jobs.BROKEN)
    return predicted(tmp_path / "result", tmp_path / "images", seen)
