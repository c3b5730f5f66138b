"""Run one job as a separate process; measure its time and the memory of all its processes."""

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
SHARE = 0.04  # maximum fraction of one core spent on measuring memory
TAIL = 3000


class JobFailedError(Exception):
    """A measured process failed or exceeded its time limit."""


@dataclass(frozen=True)
class Outcome:
    """Result of one run of a job."""

    seconds: float  # of the whole process, including start-up
    peak_mib: float  # PSS of the process and all its descendants (a shared page counts once)
    summary: dict[str, Any]  # the last line of standard output, JSON


class _Family:
    """A process and all its descendants, also those whose parents have ended."""

    def __init__(self, root: int) -> None:
        self._known = {root: psutil.Process(root)}

    def alive(self) -> list[psutil.Process]:
        """Return the running members; new ones are found through their parents."""
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
        """Return the memory of all members; a shared page counts once."""
        return sum(_pss_bytes(process.pid) for process in self.alive())

    def end(self) -> None:
        """Kill the remaining members, each by its process id."""
        for process in self.alive():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(list(self._known.values()), timeout=10)


def _pss_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # the process has just ended
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def run_module(module: str, arguments: Sequence[str], timeout_s: float) -> Outcome:
    """Run `python -m module`; return its result.

    Raises:
        JobFailedError: It failed or took too long; the message has the end of its output.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(Path.cwd()), **os.environ}
    environment["CVBATCH_CACHE"] = "off"  # a first job compiles its models
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
        output = out.read()
        if process.returncode != 0:
            what = "took too long" if process.returncode is None else "failed"
            raise JobFailedError(f"{' '.join(command)} {what}:\n{(output + err.read())[-TAIL:]}")
    return Outcome(seconds, peak / 2**20, json.loads(output.strip().splitlines()[-1]))


def _watch(process: subprocess.Popen[bytes], family: _Family, deadline: float) -> int:
    """Return the peak of the sampled bytes until the process ended or the deadline passed."""
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
