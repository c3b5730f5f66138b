"""Run the command in a subprocess, list and kill its processes, and log the chunks it reads."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil

from tests.support.waiting import LIMIT_S, until

T = TypeVar("T")
WATCHED = Path(__file__).parent / "watched"  # contains the sitecustomize.py of the job's processes
ACTOR = "ray::FusedWorker"
POLL_INTERVAL_S = 0.002


class ChunkStart(NamedTuple):
    """A process started to read a chunk."""

    chunk_id: str
    pid: int


class WatchedJob:
    """One run of the command. An environment variable marks its processes, also orphans."""

    def __init__(
        self,
        config: Path,
        pace_s: float = 0.0,
        options: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self._mark = f"WATCHED_MARK={uuid.uuid4()}".encode()
        self._log = tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._stdout = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115
        name, mark = self._mark.decode().split("=")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cvbatch", "predict", "--config", str(config), *options],
            stdout=self._stdout,
            stderr=self._stderr,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(WATCHED), os.environ.get("PYTHONPATH", "")]),
                "WATCHED_LOG": self._log.name,
                "WATCHED_PACE_S": str(pace_s),
                name: mark,
                **environment,
            },
        )
        self.pid = self._process.pid
        self._known = {self.pid: psutil.Process(self.pid)}

    def __enter__(self) -> WatchedJob:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_node()
        self._process.wait()
        self._stdout.close()
        self._stderr.close()
        self._log.close()

    @property
    def status(self) -> int | None:
        """The exit status; None while the driver runs."""
        return self._process.poll()

    def ended(self, limit_s: float = LIMIT_S) -> int:
        return self._process.wait(limit_s)

    def until(self, condition: Callable[[], T], description: str) -> T:
        """Return the first true value of `condition`; raise RuntimeError if the driver ends."""

        def checked() -> T:
            if self.status is not None:
                raise RuntimeError(
                    f"ended before {description}, with {self.status}:\n{self.stderr()}"
                )
            return condition()

        return until(checked, description, poll_s=POLL_INTERVAL_S)

    def stdout(self) -> str:
        """Return the text on stdout so far."""
        return Path(f"/proc/self/fd/{self._stdout.fileno()}").read_text()

    def stderr(self) -> str:
        """Return the text on stderr so far."""
        return Path(f"/proc/self/fd/{self._stderr.fileno()}").read_text()

    def started(self) -> list[ChunkStart]:
        """Return the chunks in the order in which they were started, including repeated starts."""
        lines = Path(self._log.name).read_text().splitlines()
        return [ChunkStart(chunk_id, int(pid)) for chunk_id, pid in map(str.split, lines)]

    def family(self) -> list[psutil.Process]:
        """Return all running processes of the job: the driver, Ray's, the workers."""
        processes = {p.pid: p for p in psutil.process_iter(["ppid"])}
        for pid, process in processes.items():
            if pid not in self._known and self._is_marked(pid):
                self._known[pid] = process
        new = True
        while new:  # Ray's workers overwrite the mark with their titles: find them by parent
            new = {
                pid: process
                for pid, process in processes.items()
                if pid not in self._known and process.info["ppid"] in self._known
            }
            self._known |= new
        return [process for process in self._known.values() if _is_alive(process)]

    def _is_marked(self, pid: int) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # it has just ended, or belongs to another user
            return False

    def actors(self) -> list[psutil.Process]:
        return [process for process in self.family() if ACTOR in _title(process)]

    def send(self, number: int, to_group: bool = False) -> None:
        """Send a signal to the driver, or, like a terminal, to its process group."""
        (os.killpg if to_group else os.kill)(self.pid, number)

    def kill_driver(self) -> None:
        self.family()  # so that its children are known when it is dead
        self.send(signal.SIGKILL)

    def kill_node(self) -> None:
        """Kill all processes, as if the machine failed."""
        while family := self.family():
            for process in family:
                _kill(process)

    def kill_actor(self, rng: random.Random) -> None:
        actors = until(self.actors, "an actor")
        _kill(rng.choice(sorted(actors, key=lambda process: process.pid)))

    def kill_writer(self, folder: Path) -> bool:
        """Kill a worker that has a temporary file in the folder open; return whether one did."""
        for process in self.actors():
            if any(folder in path.parents for path in _open_files(process)):
                _kill(process)
                return True
        return False

    def kill_reader_of(self, chunk_id: str) -> None:
        """Kill the worker that was the last to start a chunk."""
        pid = next(s.pid for s in reversed(self.started()) if s.chunk_id == chunk_id)
        (process,) = [process for process in self.family() if process.pid == pid]
        _kill(process)


def _open_files(process: psutil.Process) -> list[Path]:
    try:
        descriptors = list(Path(f"/proc/{process.pid}/fd").iterdir())
    except OSError:  # it has just ended
        return []
    paths = []
    for descriptor in descriptors:
        try:
            path = descriptor.readlink()
        except OSError:  # just closed
            continue
        if path.name.startswith(".part-") and path.name.endswith(".tmp"):
            paths.append(path)
    return paths


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()  # psutil checks that the pid is still this process
    except psutil.NoSuchProcess:
        return


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
