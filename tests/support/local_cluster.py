"""A local Ray cluster of two nodes, started by `ray start`, that takes jobs by `ray job submit`.

The nodes are two addresses of this machine, with separate processes, ports and folders.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.support.small_disk import can_mount
from tests.support.waiting import LIMIT_S, until

JOBS = Path(__file__).parents[2] / "jobs"
END_LIMIT_S = 5.0  # of a node that stops: it would wait for actors
OBJECT_STORE_BYTES = 200_000_000
RAY = Path(sys.executable).parent / "ray"
# Without a token Ray creates one and stores it in the user's home.
TOKEN = "made-up-for-tests-0123456789abcdef"
RUNTIME_ENV = {"RAY_JOB_STOP_WAIT_TIME_S": "15"}  # after it Ray kills a stopped job


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Machine:
    """One node of a cluster."""

    node_id: str
    metrics_port: int

    def scraped(self) -> dict[str, float]:
        """Return the metrics that Prometheus would scrape: series with labels → value."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=LIMIT_S) as response:
            lines = response.read().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {series: float(value) for series, value in samples}


@dataclass(frozen=True)
class FinishedJob:
    """A submitted job that has ended."""

    log: str
    job: dict[str, Any]  # its state from Ray's dashboard

    @property
    def status(self) -> int | None:
        """The exit status of the job's command; None if it was stopped."""
        status: int | None = self.job["driver_exit_code"]
        return status

    @property
    def last_line(self) -> str:
        return self.log.strip().splitlines()[-1]

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a job with --log json."""
        return events_in(self.log)


def events_in(log: str) -> list[dict[str, Any]]:
    """Parse the JSON lines of a job's log that follow Ray's own lines: events and the summary."""
    _, _, lines = log.partition("Running entrypoint for job")
    return [json.loads(line) for line in lines.splitlines()[1:]]


@dataclass(frozen=True)
class LocalCluster:
    """A head node with CPUs, and a node with one CPU and one GPU (a number, no device)."""

    address: str
    dashboard: str
    head: Machine
    gpu: Machine
    env: dict[str, str]
    hidden: Path  # a folder that is empty on the GPU node, if mounts are allowed

    def get(self, path: str) -> Any:
        """Return the JSON response of the dashboard."""
        request = urllib.request.Request(
            self.dashboard + path, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
            return json.load(response)

    def state(self, kind: str) -> list[dict[str, Any]]:
        """Return Ray's state of "tasks" or "actors"."""
        response = self.get(f"/api/v0/{kind}?detail=1&limit=10000")
        assert response["result"], response["msg"]
        states: list[dict[str, Any]] = response["data"]["result"]["result"]
        return states

    def job(self, submission_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.get(f"/api/jobs/{submission_id}")
        return job

    def submit(self, folder: Path, name: str, *arguments: str, **variables: str) -> FinishedJob:
        """Submit jobs/NAME.py with the working directory, and wait until it ends."""
        job_id = submission_id(folder, name)
        process = self.submitting(folder, name, *arguments, "--no-wait", job_id=job_id, **variables)
        assert process.returncode == 0, process.stdout
        return self.ended(job_id)

    def ended(self, job_id: str) -> FinishedJob:
        """Wait until a submitted job ends; return its log and state."""
        final_states = ("SUCCEEDED", "FAILED", "STOPPED")
        until(lambda: self.job(job_id)["status"] in final_states, f"the end of {job_id}")
        return FinishedJob(self.log(job_id), self.job(job_id))

    def log(self, job_id: str) -> str:
        """Return the log of a job so far."""
        log: str = self.get(f"/api/jobs/{job_id}/logs")["logs"]
        return log

    def submitting(
        self, folder: Path, name: str, *arguments: str, job_id: str, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `ray job submit`, which follows the log of the job unless --no-wait is an argument.

        Args:
            variables: environment variables of the job's runtime environment.
        """
        runtime = folder.parent / "runtime.yaml"
        settings = {"env_vars": {**RUNTIME_ENV, **variables}}
        runtime.write_text(yaml.safe_dump(settings), encoding="utf-8")
        options = [argument for argument in arguments if argument == "--no-wait"]
        command = [RAY, "job", "submit", "--address", self.dashboard, "--submission-id", job_id]
        command += ["--working-dir", folder, "--runtime-env", runtime, *options, "--", "python"]
        command += [f"jobs/{name}.py", "--config", f"{name}.yaml"]
        command += [argument for argument in arguments if argument not in options]
        return subprocess.run(
            list(map(str, command)),
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )

    def stop(self, submission_id: str) -> None:
        """Run `ray job stop`, which waits until the job has ended."""
        command = [RAY, "job", "stop", "--address", self.dashboard, submission_id]
        subprocess.run(command, env=self.env, check=True, capture_output=True, timeout=LIMIT_S)


def submission_id(folder: Path, name: str) -> str:
    return f"{name}-{folder.parent.name}-{time.monotonic_ns()}"


def working_folder(folder: Path, **job_files: Mapping[str, object]) -> Path:
    """Return a working directory to submit: the scripts in jobs/ and the job files."""
    target = folder / "submitted"
    shutil.copytree(JOBS, target / "jobs", ignore=shutil.ignore_patterns("examples", "__pycache__"))
    for name, values in job_files.items():
        (target / f"{name}.yaml").write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return target


@contextmanager
def local_cluster(extra: Mapping[str, str], hidden: Path) -> Iterator[LocalCluster]:
    """Start both nodes; stop them at the end of the block.

    Args:
        extra: environment variables of all their processes.
        hidden: a folder in whose place the GPU node sees an empty one.
    """
    paths = [str(RAY.parent), os.environ["PATH"]]
    env = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PATH": os.pathsep.join(paths),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
        **extra,
    }
    address, dashboard = f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    port, dashboard_port = address.split(":")[1], dashboard.rsplit(":", 1)[1]
    metrics_ports = free_port(), free_port()
    with ExitStack() as stack:
        head = ["--head", "--port", port, "--dashboard-host", "127.0.0.1", "--num-cpus", "2"]
        head += ["--dashboard-port", dashboard_port, "--ray-client-server-port", str(free_port())]
        head_env = {**env, "TEST_NODE": "head"}
        stack.enter_context(_node([*head, "--num-gpus", "0"], metrics_ports[0], head_env))
        joining = ["--address", address, "--node-ip-address", "127.0.0.2", "--num-cpus", "1"]
        until(lambda: _accepts_connections(int(port)), "the head")
        gpu_env, masked = {**env, "TEST_NODE": "gpu"}, hidden if can_mount() else None
        stack.enter_context(_node([*joining, "--num-gpus", "1"], metrics_ports[1], gpu_env, masked))
        cluster = LocalCluster(address, dashboard, *_UNKNOWN, env, hidden)
        nodes = until(lambda: _two_nodes(cluster), "both nodes")
        head_id = next(node["node_id"] for node in nodes if node["is_head_node"])
        gpu_id = next(node["node_id"] for node in nodes if not node["is_head_node"])
        machines = Machine(head_id, metrics_ports[0]), Machine(gpu_id, metrics_ports[1])
        yield LocalCluster(address, dashboard, *machines, env, hidden)


_UNKNOWN = Machine("", 0), Machine("", 0)


def _accepts_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _two_nodes(cluster: LocalCluster) -> list[dict[str, Any]]:
    try:
        nodes = cluster.state("nodes")
    except OSError:  # the dashboard is not up yet
        return []
    return nodes if len(nodes) == 2 else []


@contextmanager
def _node(
    arguments: list[str], metrics_port: int, env: dict[str, str], masked: Path | None = None
) -> Iterator[None]:
    """Run a node; it sees an empty folder in place of `masked`."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # socket paths are short
    command = [RAY, "start", "--block", "--temp-dir", folder, *arguments]
    command += ["--metrics-export-port", metrics_port, "--dashboard-agent-listen-port", free_port()]
    command += ["--object-store-memory", OBJECT_STORE_BYTES, "--include-log-monitor", "false"]
    if masked is not None:
        mounting = f"mount -t tmpfs none {shlex.quote(str(masked))} && exec "
        command = ["unshare", "-Urm", "sh", "-c", mounting + shlex.join(map(str, command))]
    with (folder / "started.log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), env=env, stdout=log, stderr=log)
    try:
        yield
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, remaining = psutil.wait_procs(family, END_LIMIT_S)
        for child in remaining:
            child.kill()
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
