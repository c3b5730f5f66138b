"""Joins a running Ray cluster or starts a local one, and lays the work on what it has.

Ray itself is imported when it is first needed: that takes a second, and a job with nothing to do
does without.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cvbatch.core.child_process import silent_stderr
from cvbatch.core.errors import ConfigError, CvbatchError
from cvbatch.distributed import hardware
from cvbatch.distributed.resources import Allocation, Node, Resources

# A local Ray holds chunks in passing only; its default is 30 % of the machine's memory.
_LOCAL_OBJECT_STORE_BYTES = 512 << 20
_ANSWER_LIMIT_S = 10.0  # of a cluster's head
_OTHER_TOKEN = "AuthenticationError"  # the cause, as text, why there is no connection
_OTHER_VERSION = "Version mismatch"  # of a cluster that has another Ray or Python
_LATE = "timed out during startup"  # what Ray says of a node that came up too slowly


def joins_a_cluster() -> bool:
    """Say whether this process belongs to a cluster already: a submitted job, or RAY_ADDRESS."""
    return _is_connected() or bool(os.environ.get("RAY_ADDRESS"))


def _is_connected() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def actors_now(wiring: Allocation) -> int:
    """Return how many of the job's actors the connected cluster has room for as it is now."""
    import ray

    room = _found(ray).actors_that_fit(wiring.cpus_per_actor, wiring.gpus_per_actor)
    return min(room, wiring.max_actors)


@contextmanager
def connect_ray() -> Iterator[Resources]:
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
