"""A hostile model ends a command with exit status 2 and one sentence; nothing was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.security import models
from tests.support import jobs

pytestmark = [pytest.mark.keras, pytest.mark.ray]


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A .keras file with a Lambda layer that would leave a file called `canary`."""
    honest, path = tmp_path / "honest.keras", tmp_path / "evil.keras"
    models.network().save(honest)
    config = models.bad_configs(honest, tmp_path / "canary")["layer Lambda"]
    models.write(path, {**models.members(honest), "config.json": config})
    honest.unlink()
    return path


def test_models_refuses_it(evil: Path) -> None:
    status, said, told = jobs.cvbatch("models", evil)
    assert (status, said) == (2, "")
    assert "holds a Lambda layer, which could run any code" in told.strip().splitlines()[-1]
    assert [path.name for path in evil.parent.iterdir()] == ["evil.keras"]


def test_a_job_refuses_it_and_what_is_not_pinned(evil: Path) -> None:
    source = jobs.write_files(evil.parent / "in", jobs.archive_files(2))
    sink = evil.parent / "out"
    job = {
        "source": {"uri": str(source)},
        "sink": {"uri": str(sink)},
        "models": [{"task": "classification", "model": str(evil)}],
    }
    path = jobs.write_job(evil.parent / "job.yaml", job)
    status, _, told = jobs.cvbatch("predict", "--config", path)
    assert status == 2
    assert "holds a Lambda layer" in told.strip().splitlines()[-1]
    job["models"][0]["sha256"] = "0" * 64
    status, _, told = jobs.cvbatch("predict", "--config", jobs.write_job(path, job))
    assert status == 2
    assert f"not {'0' * 64}" in told.strip().splitlines()[-1]
    assert not sink.exists()
    assert not (evil.parent / "canary").exists()
