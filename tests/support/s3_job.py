"""Jobs that read from and write to an S3 server, over a proxy, with their outputs and logs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from tests.support import jobs
from tests.support.faulty_proxy import Chooser, Proxy, healthy, proxied
from tests.support.s3_server import KEY, SECRET, S3Server

NUM_IMAGES = 24
TOKEN = "a-made-up-session-token-for-tests"
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@dataclass
class FinishedRun:
    """Exit status, output and Ray folder of one command."""

    status: int
    stdout: str
    stderr: str
    ray: Path  # temporary folder of its Ray

    @property
    def last_line(self) -> str:
        return self.stderr.strip().splitlines()[-1]


@dataclass
class StoredJob:
    """A job over one S3 server; it can be run several times, with a sink each."""

    server: S3Server
    models: Path
    folder: Path  # for job files and AWS files
    runs: list[FinishedRun] = field(default_factory=list)

    def __post_init__(self) -> None:
        jobs.write_files(self.server.bucket / "stored" / "in", jobs.archive_files(NUM_IMAGES))

    def values(self, sink: str, **run: object) -> dict[str, object]:
        values = jobs.job("s3://bucket/stored/in", f"s3://bucket/stored/{sink}", self.models)
        run = {"batch_size": 4, "chunk_images": 4, "max_failure_fraction": 0.5, "actors": 2} | run
        return values | {"models": values["models"][:1], "run": run}

    def sink(self, name: str) -> Path:
        return self.server.bucket / "stored" / name

    def carry_programs(self, done: str, name: str) -> None:
        jobs.carry_programs(self.sink(done), self.sink(name))

    def env(self, endpoint: str) -> dict[str, str]:
        """Return the environment of a job, with keys and a session token."""
        names = {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_SESSION_TOKEN": TOKEN}
        return {**os.environ, **self.server.env, **names}

    def env_of_files(self, endpoint: str, which: str) -> dict[str, str]:
        """Return the environment of a job whose keys are in one of the two AWS files of a user."""
        env = {name: v for name, v in self.env(endpoint).items() if name not in CREDENTIALS}
        head = "[profile marked]" if which == "AWS_CONFIG_FILE" else "[marked]"
        keys = zip(CREDENTIALS, (KEY, SECRET, TOKEN), strict=True)
        lines = [head, *(f"{name.lower()} = {value}" for name, value in keys)]
        path = self.folder / which
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        empty = self.folder / "empty"
        empty.touch()
        files = {"AWS_CONFIG_FILE": str(empty), "AWS_SHARED_CREDENTIALS_FILE": str(empty)}
        return {**env, **files, which: str(path), "AWS_PROFILE": "marked"}

    def run(self, values: dict[str, object], env: dict[str, str], *arguments: str) -> FinishedRun:
        path = jobs.write_job(self.folder / "job.yaml", values)
        ray = Path(tempfile.mkdtemp(prefix="cvb-", dir="/tmp"))  # socket paths are short
        command = ["predict", "--config", path, *arguments]
        run = FinishedRun(*jobs.cvbatch(*command, env={**env, "RAY_TMPDIR": str(ray)}), ray)
        self.runs.append(run)
        return run

    def remove(self) -> None:
        for run in self.runs:
            shutil.rmtree(run.ray)


@contextmanager
def over_proxy(job: StoredJob, choose: Chooser = healthy) -> Iterator[Proxy]:
    with proxied(job.server.endpoint, choose) as proxy:
        yield proxy


def leaks(run: FinishedRun, *folders: Path) -> list[str]:
    """Return where credentials are: stdout, stderr, files of Ray, files in `folders`."""
    texts = [("stdout", run.stdout.encode()), ("stderr", run.stderr.encode())]
    texts += [(str(path), data) for folder in (run.ray, *folders) for path, data in _files(folder)]
    secrets = [secret.encode() for secret in (KEY, SECRET, TOKEN)]
    return [name for name, data in texts if any(secret in data for secret in secrets)]


def _files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield all files below a folder with their bytes; for Parquet also its uncompressed values."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if path.suffix == ".parquet" and data:
            table = pq.read_table(path)
            footer = pq.read_metadata(path).metadata or {}
            data += repr(table.to_pylist()).encode() + repr(footer).encode()
        yield path, data
