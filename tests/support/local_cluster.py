"""A cluster as an operator starts one: `ray start` on each machine, then `ray job submit`.

The machines are two addresses of this one, each with processes, ports and folders of its own.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from tests.support.small_disk import can_mount

T = TypeVar("T")
JOBS = Path(__file__).parents[2] / "jobs"
LIMIT_S = 240.0  # of whatever is awaited: other work may hold the cores
LOOK_S = 0.1
END_LIMIT_S = 5.0  # of a node that is told to stop: it would wait for actors
OBJECT_STORE_BYTES = 200_000_000
RAY = Path(sys.executable).parent / "ray"
# Ray makes a token of its own where nobody gives it one, and keeps it in the user's home.
TOKEN = "made-up-for-tests-0123456789abcdef"
RUNTIME_ENV = {"RAY_JOB_STOP_WAIT_TIME_S": "15"}  # after which Ray kills a job that is stopped


def until(look: Callable[[], T], what: str, limit_s: float = LIMIT_S) -> T:
    """Return the first thing `look` finds that is true."""
    deadline = time.monotonic() + limit_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(LOOK_S)
    return found


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
        """Return what Prometheus would read here: each series as it stands there, its value."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
            lines = answer.read().decode().splitlines()
        said = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {series: float(value) for series, value in said}


@dataclass(frozen=True)
class Ran:
    """A job that was submitted and has ended."""

    told: str  # its log
    job: dict[str, Any]  # as Ray's dashboard tells of it

    @property
    def status(self) -> int | None:
        """The exit status of the job itself, where it came to one."""
        status: int | None = self.job["driver_exit_code"]
        return status

    @property
    def last_line(self) -> str:
        return self.told.strip().splitlines()[-1]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What a job with --log json said."""
        return events_in(self.told)


def events_in(told: str) -> list[dict[str, Any]]:
    """Return the objects that a job's log is, behind what Ray says of it: every line is one."""
    _, _, said = told.partition("Running entrypoint for job")
    return [json.loads(line) for line in said.splitlines()[1:]]


@dataclass(frozen=True)
class LocalCluster:
    """A head with CPUs, and a machine with one CPU and one GPU that is only a number to Ray."""

    address: str
    dashboard: str
    head: Machine
    gpu: Machine
    env: dict[str, str]
    hidden: Path  # a folder that the machine with the GPU has another one of, where it may

    def asked(self, path: str) -> Any:
        """Return what the dashboard answers, as JSON."""
        asked = urllib.request.Request(
            self.dashboard + path, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(asked, timeout=LIMIT_S) as answer:
            return json.load(answer)

    def state(self, kind: str) -> list[dict[str, Any]]:
        """Return Ray's state of "tasks" or "actors"."""
        told = self.asked(f"/api/v0/{kind}?detail=1&limit=10000")
        assert told["result"], told["msg"]
        found: list[dict[str, Any]] = told["data"]["result"]["result"]
        return found

    def job(self, submission_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.asked(f"/api/jobs/{submission_id}")
        return found

    def submit(self, folder: Path, name: str, *words: str, **variables: str) -> Ran:
        """Submit jobs/NAME.py with the working directory; return when it has ended."""
        job_id = submission_id(folder, name)
        told = self.submitting(folder, name, *words, "--no-wait", job_id=job_id, **variables)
        assert told.returncode == 0, told.stdout
        return self.ended(job_id)

    def ended(self, job_id: str) -> Ran:
        """Return what a job that was submitted came to."""
        ended = ("SUCCEEDED", "FAILED", "STOPPED")
        until(lambda: self.job(job_id)["status"] in ended, f"the end of {job_id}")
        return Ran(self.log(job_id), self.job(job_id))

    def log(self, job_id: str) -> str:
        """Return what a job has said so far."""
        told: str = self.asked(f"/api/jobs/{job_id}/logs")["logs"]
        return told

    def submitting(
        self, folder: Path, name: str, *words: str, job_id: str, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `ray job submit`, which follows the job unless there is --no-wait among the words.

        variables: of the job's runtime environment.
        """
        runtime = folder.parent / "runtime.yaml"
        said = {"env_vars": {**RUNTIME_ENV, **variables}}
        runtime.write_text(yaml.safe_dump(said), encoding="utf-8")
        options = [word for word in words if word == "--no-wait"]
        command = [RAY, "job", "submit", "--address", self.dashboard, "--submission-id", job_id]
        command += ["--working-dir", folder, "--runtime-env", runtime, *options, "--", "python"]
        command += [f"jobs/{name}.py", "--config", f"{name}.yaml"]
        command += [word for word in words if word not in options]
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
    """Return a working directory to submit: the scripts in jobs/, and the job files by name."""
    target = folder / "submitted"
    shutil.copytree(JOBS, target / "jobs", ignore=shutil.ignore_patterns("examples", "__pycache__"))
    for name, values in job_files.items():
        (target / f"{name}.yaml").write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
    return target


@contextmanager
def local_cluster(extra: Mapping[str, str], hidden: Path) -> Iterator[LocalCluster]:
    """Start both nodes; end them with the block.

    extra: variables of all their processes. hidden: a folder of which the second has its own.
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
        until(lambda: _answers(int(port)), "the head")
        gpu_env, own = {**env, "TEST_NODE": "gpu"}, hidden if can_mount() else None
        stack.enter_context(_node([*joining, "--num-gpus", "1"], metrics_ports[1], gpu_env, own))
        cluster = LocalCluster(address, dashboard, *_NOT_KNOWN, env, hidden)
        nodes = until(lambda: _two_nodes(cluster), "both nodes")
        head_id = next(node["node_id"] for node in nodes if node["is_head_node"])
        gpu_id = next(node["node_id"] for node in nodes if not node["is_head_node"])
        machines = Machine(head_id, metrics_ports[0]), Machine(gpu_id, metrics_ports[1])
        yield LocalCluster(address, dashboard, *machines, env, hidden)


_NOT_KNOWN = Machine("", 0), Machine("", 0)


def _answers(port: int) -> bool:
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
    words: list[str], metrics_port: int, env: dict[str, str], own: Path | None = None
) -> Iterator[None]:
    """Run a node; own: a folder in place of which it has an empty one."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: sockets' names are in it
    command = [RAY, "start", "--block", "--temp-dir", folder, *words]
    command += ["--metrics-export-port", metrics_port, "--dashboard-agent-listen-port", free_port()]
    command += ["--object-store-memory", OBJECT_STORE_BYTES, "--include-log-monitor", "false"]
    if own is not None:
        mounting = f"mount -t tmpfs none {shlex.quote(str(own))} && exec "
        command = ["unshare", "-Urm", "sh", "-c", mounting + shlex.join(map(str, command))]
    with (folder / "started.log").open("w") as log:
        process = subprocess.Popen(list(map(str, command)), env=env, stdout=log, stderr=log)
    try:
        yield
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, left = psutil.wait_procs(family, END_LIMIT_S)
        for one in left:
            one.kill()
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
