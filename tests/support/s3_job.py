"""Whole jobs from one S3 folder into another, over a proxy, with all that they leave behind."""

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
class Ran:
    """What one command left behind."""

    status: int
    said: str
    told: str
    ray: Path  # the folder of its Ray

    @property
    def last_line(self) -> str:
        return self.told.strip().splitlines()[-1]


@dataclass
class StoredJob:
    """A job over one S3 server; it may be run several times, each into a sink of its own."""

    server: S3Server
    models: Path
    folder: Path  # for its own files
    runs: list[Ran] = field(default_factory=list)

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
        """Return the environment that reaches the store, keys and a session token in it."""
        names = {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_SESSION_TOKEN": TOKEN}
        return {**os.environ, **self.server.env, **names}

    def env_of_files(self, endpoint: str, which: str) -> dict[str, str]:
        """Return the environment that names a profile in one of the user's two AWS files."""
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

    def run(self, values: dict[str, object], env: dict[str, str], *words: str) -> Ran:
        path = jobs.write_job(self.folder / "job.yaml", values)
        ray = Path(tempfile.mkdtemp(prefix="cvb-", dir="/tmp"))  # short: sockets' names are in it
        command = ["predict", "--config", path, *words]
        ran = Ran(*jobs.cvbatch(*command, env={**env, "RAY_TMPDIR": str(ray)}), ray)
        self.runs.append(ran)
        return ran

    def remove(self) -> None:
        for ran in self.runs:
            shutil.rmtree(ran.ray)


@contextmanager
def over_proxy(job: StoredJob, choose: Chooser = healthy) -> Iterator[Proxy]:
    with proxied(job.server.endpoint, choose) as proxy:
        yield proxy


def leaks(ran: Ran, *folders: Path) -> list[str]:
    """Return where a credential is found: in what a command said, in its Ray's logs, in folders."""
    texts = [("stdout", ran.said.encode()), ("stderr", ran.told.encode())]
    texts += [(str(path), data) for folder in (ran.ray, *folders) for path, data in _files(folder)]
    secrets = [secret.encode() for secret in (KEY, SECRET, TOKEN)]
    return [name for name, data in texts if any(secret in data for secret in secrets)]


def _files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield all files below a folder; of Parquet what it holds, uncompressed."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if path.suffix == ".parquet" and data:
            table = pq.read_table(path)
            footer = pq.read_metadata(path).metadata or {}
            data += repr(table.to_pylist()).encode() + repr(footer).encode()
        yield path, data
