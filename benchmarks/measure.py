"""Runs one job as a process of its own: its seconds, all its processes' memory, its last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PERIOD_S = 0.2
SHARE = 0.04  # of one core, at most, goes into looking at memory
TAIL = 3000


class JobFailedError(Exception):
    """A measured process ended badly or had to be ended."""


@dataclass(frozen=True)
class Outcome:
    """What one run of a job came to."""

    seconds: float  # of the whole process, start-up in
    peak_mib: float  # of it and all processes it started, together (PSS: shared pages once)
    told: dict[str, Any]  # its last line


class _Family:
    """A process and all that descend from it, also those whose parents have ended."""

    def __init__(self, root: int) -> None:
        self._known = {root: psutil.Process(root)}

    def alive(self) -> list[psutil.Process]:
        """Return the members that run now; new ones are found through their parents."""
        parents = {p.pid: p for p in psutil.process_iter(["ppid"])}
        is_growing = True
        while is_growing:
            new = [
                p
                for pid, p in parents.items()
                if pid not in self._known and p.info["ppid"] in self._known
            ]
            self._known |= {p.pid: p for p in new}
            is_growing = bool(new)
        self._known = {pid: p for pid, p in self._known.items() if p.is_running()}
        return list(self._known.values())

    def pss_bytes(self) -> int:
        """Return the memory of all members, pages that several share counted once."""
        return sum(_pss_bytes(process.pid) for process in self.alive())

    def end(self) -> None:
        """End what is left of the family, each member by its own number."""
        for process in self.alive():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(list(self._known.values()), timeout=10)


def _pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has just ended
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def run_module(module: str, arguments: Sequence[str], timeout_s: float) -> Outcome:
    """Run `python -m module`; return what it came to.

    Raises:
        JobFailedError: it failed or took too long; with the end of what it said.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(Path.cwd()), **os.environ}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env=environment, start_new_session=True
        )
        family = _Family(process.pid)
        try:
            peak = _watch(process, family, begun + timeout_s)
            seconds = time.perf_counter() - begun
        finally:
            family.end()
        out.seek(0)
        err.seek(0)
        said = out.read()
        if process.returncode != 0:
            what = "took too long" if process.returncode is None else "failed"
            raise JobFailedError(f"{' '.join(command)} {what}:\n{(said + err.read())[-TAIL:]}")
    return Outcome(seconds, peak / 2**20, json.loads(said.strip().splitlines()[-1]))


def _watch(process: subprocess.Popen[bytes], family: _Family, deadline: float) -> int:
    """Return the most bytes seen until the process ended or the deadline passed."""
    peak = 0
    while process.poll() is None and time.perf_counter() < deadline:
        looked = time.process_time()
        peak = max(peak, family.pss_bytes())
        cost = time.process_time() - looked
        try:
            process.wait(max(PERIOD_S, cost / SHARE))
        except subprocess.TimeoutExpired:
            continue
    return peak
