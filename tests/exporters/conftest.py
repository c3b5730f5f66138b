"""A finished prediction over a small archive."""

from __future__ import annotations

import pytest

from tests.support import jobs
from tests.support.datasets import picture
from tests.support.results import SIZE, random_predictions, write_predictions


@pytest.fixture
def predictions():
    """image_id → predictions of the image, as returned by `saw`."""
    return {f"set/i {n:02d}.png": random_predictions(n) for n in range(12)}


@pytest.fixture
def result(tmp_path, predictions):
    """The result with those predictions, and two failed images."""
    files = {name: picture(*SIZE, seed=n) for n, name in enumerate(predictions)}
    jobs.write_files(tmp_path / "images", files | jobs.BROKEN)
    return write_predictions(tmp_path / "result", tmp_path / "images", predictions)
