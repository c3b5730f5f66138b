"""Joins a running Ray cluster or starts a local one, and lays the work on what it has.

Ray itself is imported when it is first needed: that takes a second, and a job with nothing to do
does without.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cvbatch.config.predict import JobConfig
from cvbatch.core.errors import ConfigError, CvbatchError
from cvbatch.distributed import hardware

# A local Ray holds chunks in passing only; its default is 30 % of the machine's memory.
_LOCAL_OBJECT_STORE_BYTES = 512 << 20
_ANSWER_LIMIT_S = 10.0  # of a cluster's head
_OTHER_TOKEN = "AuthenticationError"  # the cause, as text, why there is no connection
_OTHER_VERSION = "Version mismatch"  # of a cluster that has another Ray or Python
_LATE = "timed out during startup"  # what Ray says of a node that came up too slowly


@dataclass(frozen=True)
class Node:
    """What one machine of a cluster can give."""

    num_cpus: float
    num_gpus: float
    memory_bytes: int | None  # None: not known


@dataclass(frozen=True)
class Resources:
    """What a Ray cluster can give a job."""

    num_cpus: float
    num_gpus: float
    nodes: tuple[Node, ...] = ()  # those that are alive; none where only the sums are known

    def room_for(self, cpus: float, gpus: float) -> int:
        """Return how many actors that ask for `cpus` and `gpus` each the nodes have room for."""
        whole = (Node(self.num_cpus, self.num_gpus, None),)
        return sum(room_on(node, cpus, gpus) for node in self.nodes or whole)


def joins_a_cluster() -> bool:
    """Say whether this process belongs to a cluster already: a submitted job, or RAY_ADDRESS."""
    return _is_connected() or bool(os.environ.get("RAY_ADDRESS"))


def _is_connected() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def local_resources() -> Resources:
    """Return what a local Ray would have, without starting it."""
    cpus, gpus = float(hardware.num_cpus()), float(hardware.num_gpus())
    return Resources(cpus, gpus, (Node(cpus, gpus, hardware.memory_bytes()),))


@dataclass(frozen=True)
class Wiring:
    """How the work lies on the cluster."""

    arrangement: str  # "fused" | "streaming"
    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    max_actors: int = 0  # that there may be if the cluster grows


def choose_wiring(
    job: JobConfig, source_format: str, resources: Resources, num_chunks: int
) -> Wiring:
    """Return the wiring for a job: streaming where there are GPUs, fused where not.

    A tar is one chunk of unknown length, too long to hold decoded: its job is always fused. One
    that cuts images is fused unless streaming is asked for: between tasks all tiles of a chunk
    would lie in memory, and with many tiles to an image decoding does not hold a GPU up.

    Raises:
        ConfigError: the cluster lacks what the job asks for.
    """
    run = job.run
    gpus = run.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if resources.num_gpus >= 1 else resources.num_gpus
    arrangement = run.arrangement
    if arrangement == "auto":
        is_held_whole = source_format != "webdataset" and not job.has_tiles
        is_streaming = resources.num_gpus > 0 and is_held_whole
        arrangement = "streaming" if is_streaming else "fused"
    if arrangement == "streaming" and source_format == "webdataset":
        raise ConfigError("run.arrangement: streaming cannot take tars; say fused or auto")
    room = resources.room_for(run.cpus_per_actor, gpus)
    if arrangement == "streaming":  # a CPU reads and writes
        room = min(room, math.floor((resources.num_cpus - 1) / run.cpus_per_actor + 1e-9))
    wanted = run.actors or room
    if room < 1 or wanted > room:
        raise ConfigError(
            f"run.actors: {max(wanted, 1)} with {run.cpus_per_actor:g} CPU and {gpus:g} GPU each "
            f"({arrangement}) do not fit a cluster of {resources.num_cpus:g} CPU and "
            f"{resources.num_gpus:g} GPU; {max(room, 0)} would"
            + ("" if room or not gpus else _without_gpus(resources))
        )
    most = max(1, min(run.actors or num_chunks, num_chunks))
    return Wiring(arrangement, min(wanted, most), run.cpus_per_actor, gpus, max_actors=most)


def _without_gpus(resources: Resources) -> str:
    if not resources.num_gpus:
        return ": start nodes with GPUs, or say run.gpus_per_actor: 0"
    return ": each needs its CPUs and GPUs on one node"


def actors_now(wiring: Wiring) -> int:
    """Return how many of the job's actors the connected cluster has room for as it is now."""
    import ray

    room = _found(ray).room_for(wiring.cpus_per_actor, wiring.gpus_per_actor)
    return min(room, wiring.max_actors)


def actors_on(node: Node, wiring: Wiring) -> int:
    """Return how many of a job's actors may come to lie on a node."""
    return min(room_on(node, wiring.cpus_per_actor, wiring.gpus_per_actor), wiring.num_actors)


def room_on(node: Node, cpus: float, gpus: float) -> int:
    """Return how many actors that ask for `cpus` and `gpus` each a node has room for."""
    room = math.floor(node.num_cpus / cpus + 1e-9)
    return min(room, math.floor(node.num_gpus / gpus + 1e-9)) if gpus > 0 else room


@contextmanager
def connected() -> Iterator[Resources]:
    """Yield the cluster's resources while connected; a Ray started here ends with the block.

    Raises:
        ConfigError: RAY_ADDRESS names no cluster, or none that this process can join.
    """
    was_running = _is_connected()
    import ray

    if not was_running:
        _connect()
    try:
        yield _found(ray)
    finally:
        if not was_running:
            ray.shutdown()


def _found(ray: Any) -> Resources:
    total = ray.cluster_resources()
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Resources(total.get("CPU", 0.0), total.get("GPU", 0.0), tuple(map(_node, alive)))


def _node(said: dict[str, float]) -> Node:
    memory = said.get("memory")
    return Node(said.get("CPU", 0.0), said.get("GPU", 0.0), None if memory is None else int(memory))


def _connect() -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS", "")
    _check_address(address)
    options: dict[str, object] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,  # what workers must tell comes back in their reports
    }
    if not address:
        options |= {
            "num_cpus": hardware.num_cpus(),
            "include_dashboard": False,
            "object_store_memory": _LOCAL_OBJECT_STORE_BYTES,
        }
    # Ray's C++ part warns on the terminal of every actor that Ray Data makes (its arguments lie in
    # the driver's object store, where they are safe as long as the driver lives).
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with silent_stderr():
            ray.init(**options)
    except ConnectionError as error:
        if _OTHER_TOKEN in str(error.__cause__):
            raise ConfigError(
                f"RAY_ADDRESS={address}: the cluster does not take this process's token; set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the cluster's"
            ) from None
        raise _no_cluster(address) from None
    except Exception as error:  # Ray raises these bare
        if _OTHER_VERSION in str(error):
            raise ConfigError(f"RAY_ADDRESS={address}: {_versions_in(error)}") from None
        if _LATE not in str(error):
            raise
        raise CvbatchError(
            "Ray did not start within its 30 s: this machine is too busy; run again when it is less"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints a stack and exits


def _versions_in(error: Exception) -> str:
    """Return what Ray says of both versions, in one line."""
    said = " ".join(str(error).split())
    return f"{said.removeprefix(_OTHER_VERSION + ': ')}; run with the cluster's versions"


def _check_address(address: str) -> None:
    """Refuse a host and port where nobody listens: Ray itself would wait for minutes."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS={address} is a dashboard, which takes jobs by ray job submit; say "
            "HOST:6379 to join the cluster, or unset it to run on this machine"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # none, "auto" or "local"
    try:
        socket.create_connection((host, int(port)), _ANSWER_LIMIT_S).close()
    except OSError:
        raise _no_cluster(address) from None


def _no_cluster(address: str) -> ConfigError:
    return ConfigError(
        f"RAY_ADDRESS={address}: no Ray cluster answers there; start it, or unset RAY_ADDRESS to "
        "run on this machine"
    )


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep what C++ code writes to the descriptor off the terminal; exceptions pass."""
    sys.stderr.flush()
    terminal = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)
