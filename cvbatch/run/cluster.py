"""Joins a running Ray cluster or starts a local one, and says what it has."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from cvbatch.errors import ConfigError

# A local Ray holds chunks in passing only; its default is 30 % of the machine's memory.
_LOCAL_OBJECT_STORE_BYTES = 512 << 20


@dataclass(frozen=True)
class Resources:
    """What a Ray cluster can give a job."""

    num_cpus: float
    num_gpus: float


def joins_a_cluster() -> bool:
    """Say whether this process belongs to a cluster already: a submitted job, or RAY_ADDRESS."""
    return bool(ray.is_initialized() or os.environ.get("RAY_ADDRESS"))


def local_resources() -> Resources:
    """Return what a local Ray would have, without starting it."""
    cpus = float(len(os.sched_getaffinity(0)))
    gpus = Path("/proc/driver/nvidia/gpus")
    return Resources(cpus, float(len(list(gpus.iterdir()))) if gpus.is_dir() else 0.0)


@contextmanager
def connected() -> Iterator[Resources]:
    """Yield the cluster's resources while connected; a Ray started here ends with the block.

    Raises:
        ConfigError: RAY_ADDRESS names no cluster.
    """
    was_running = ray.is_initialized()
    if not was_running:
        _connect()
    try:
        total = ray.cluster_resources()
        yield Resources(total.get("CPU", 0.0), total.get("GPU", 0.0))
    finally:
        if not was_running:
            ray.shutdown()


def _connect() -> None:
    options: dict[str, object] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,  # what workers must tell comes back in their reports
    }
    if not os.environ.get("RAY_ADDRESS"):
        options |= {
            "num_cpus": len(os.sched_getaffinity(0)),
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
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints a stack and exits
    except ConnectionError as error:
        address = os.environ.get("RAY_ADDRESS")
        raise ConfigError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({str(error)[:200]}); start it, "
            "or unset RAY_ADDRESS to run on this machine"
        ) from None


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
