"""A malicious model ends a command with exit status 2 and a one-line message."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.security import models
from tests.support import jobs

pytestmark = [pytest.mark.keras, pytest.mark.ray]


@pytest.fixture
def malicious(tmp_path: Path) -> Path:
    """A .keras file with a Lambda layer that would create a file named `canary`."""
    valid, path = tmp_path / "valid.keras", tmp_path / "evil.keras"
    models.network().save(valid)
    config = models.bad_configs(valid, tmp_path / "canary")["layer Lambda"]
    models.write(path, {**models.members(valid), "config.json": config})
    valid.unlink()
    return path


def test_the_models_command_refuses_it(malicious: Path) -> None:
    status, stdout, stderr = jobs.cvbatch("models", malicious)
    assert (status, stdout) == (2, "")
    assert "holds a Lambda layer, which could run any code" in stderr.strip().splitlines()[-1]
    assert [path.name for path in malicious.parent.iterdir()] == ["evil.keras"]


def test_a_job_refuses_it_and_a_wrong_hash(malicious: Path) -> None:
    source = jobs.write_files(malicious.parent / "in", jobs.archive_files(2))
    sink = malicious.parent / "out"
    job = {
        "source": {"uri": str(source)},
        "sink": {"uri": str(sink)},
        "models": [{"task": "classification", "model": str(malicious)}],
    }
    path = jobs.write_job(malicious.parent / "job.yaml", job)
    status, _, stderr = jobs.cvbatch("predict", "--config", path)
    assert status == 2
    assert "holds a Lambda layer" in stderr.strip().splitlines()[-1]
    job["models"][0]["sha256"] = "0" * 64
    status, _, stderr = jobs.cvbatch("predict", "--config", jobs.write_job(path, job))
    assert status == 2
    assert f"not {'0' * 64}" in stderr.strip().splitlines()[-1]
    assert not sink.exists()
    assert not (malicious.parent / "canary").exists()
