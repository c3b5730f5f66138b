"""A result of version 0.1.0 is resumed: same programs, same bytes.

`tests/fixtures/result_0_1_0` contains the output of commit 35336e2, before packages were moved, for
`job.yaml` (masks at the network's size, because those of originals have had other rows since). Its
images were S3 objects with the modification time 1,700,000,000 s (Unix time).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.support.jobs import cvbatch
from tests.support.s3_server import S3Server

EARLIER = Path(__file__).parents[1] / "fixtures" / "result_0_1_0"
MODIFIED_S = 1_700_000_000


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, name → bytes, without the summaries and job of runs."""
    names = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "runs"]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in names}
    files.pop("_cvbatch/job.yaml", None)  # of the last run; later versions write it
    return files


@pytest.fixture
def folder(s3: S3Server, tmp_path: Path) -> Path:
    """A copy of the earlier result, with its images in the store again."""
    shutil.copytree(EARLIER, tmp_path / "job")
    archive = s3.bucket / "earlier" / "in"
    shutil.copytree(EARLIER / "images", archive, dirs_exist_ok=True)
    for path in archive.iterdir():
        os.utime(path, (MODIFIED_S, MODIFIED_S))
    return tmp_path / "job"


@pytest.mark.ray
@pytest.mark.parametrize("missing", [0, 1, 3])
def test_an_earlier_result_is_resumed_with_the_same_bytes(folder, monkeypatch, missing):
    monkeypatch.chdir(folder)
    before = files_of(folder / "result")
    parts = sorted((folder / "result").glob("*.parquet"))
    for part in parts[:missing]:
        part.unlink()
    status, stdout, stderr = cvbatch("predict", "--config", "job.yaml", "--json")
    assert status == 0, stderr
    summary = json.loads(stdout)
    assert (summary["num_chunks"], summary["num_new"], summary["num_changed"]) == (missing, 0, 0)
    after = files_of(folder / "result")
    after.pop("_cvbatch/job.yaml", None)  # the job that was run, which version 0.1.0 did not store
    assert after == before
