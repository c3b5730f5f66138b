"""Join a Ray cluster or start a local one.

Ray is imported when it is first used: the import takes a second, and a job with nothing to do does
not need it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from cvbatch.core.child_process import silent_stderr
from cvbatch.core.errors import ConfigError, CvbatchError
from cvbatch.distributed import hardware
from cvbatch.distributed.ray_start import start_failure, waiting_for_node
from cvbatch.distributed.resources import Allocation, Node, Resources

# A local Ray stores chunks only briefly. Ray's default is 30 % of the memory of the machine.
_LOCAL_OBJECT_STORE_BYTES = 512 << 20
_CONNECT_TIMEOUT_S = 10.0
# Parts of the messages of exceptions that Ray raises without a class of their own.
_WRONG_TOKEN = "AuthenticationError"
_OTHER_VERSION = "Version mismatch"  # of Ray or Python
_START_TIMEOUTS = ("timed out during startup", "Timed out waiting for file")
# Processes of Ray that a local job does not need: the autoscaler, forwarding of log files, the
# dashboard. Without them Ray starts with 40 % less CPU time. `ray.init` has no option for them.
_UNUSED_PROCESSES = ("start_monitor", "start_log_monitor", "start_api_server")
# A thread of the driver that prints every lost worker and node on stdout, in several lines. The
# job reports what matters of it.
_PRINTING_THREAD = "listen_error_messages"


def joins_a_cluster() -> bool:
    """Return whether this process uses a running cluster: a submitted job, or RAY_ADDRESS."""
    return _is_connected() or bool(os.environ.get("RAY_ADDRESS"))


def _is_connected() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def actors_now(allocation: Allocation) -> int:
    """Return how many of the job's actors fit on the connected cluster now."""
    import ray

    count = _cluster_resources(ray).actors_that_fit(
        allocation.cpus_per_actor, allocation.gpus_per_actor
    )
    return min(count, allocation.max_actors)


@contextmanager
def connect_ray() -> Iterator[Resources]:
    """Connect to Ray and yield the resources of the cluster; a local Ray ends with the block.

    Raises:
        ConfigError: RAY_ADDRESS is no cluster, or one that this process cannot join.
        CvbatchError: a local Ray did not start in time.
    """
    was_running = _is_connected()
    import ray

    if not was_running:
        _connect()
    try:
        yield _cluster_resources(ray)
    finally:
        if not was_running:
            ray.shutdown()


def _cluster_resources(ray: Any) -> Resources:
    total = ray.cluster_resources()
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Resources(total.get("CPU", 0.0), total.get("GPU", 0.0), tuple(map(_node, alive)))


def _node(resources: dict[str, float]) -> Node:
    memory = resources.get("memory")
    memory_bytes = None if memory is None else int(memory)
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0), memory_bytes)


def _connect() -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS", "")
    _check_address(address)
    options: dict[str, object] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,  # workers return what the driver needs in their reports
    }
    if not address:
        options |= {
            "num_cpus": hardware.num_cpus(),
            "include_dashboard": False,
            "object_store_memory": _LOCAL_OBJECT_STORE_BYTES,
        }
    # Ray's C++ code warns on the terminal about every actor of Ray Data, because its arguments are
    # in the driver's object store. They are safe there while the driver runs.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    begin = time.monotonic()
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    try:
        from ray._private import node, worker

        with ExitStack() as stack:
            stack.enter_context(silent_stderr())
            stack.enter_context(_without(worker, _PRINTING_THREAD))
            if not address:
                stack.enter_context(_without(node.Node, *_UNUSED_PROCESSES))
                stack.enter_context(waiting_for_node())
            ray.init(**options)
    except ConnectionError as error:
        if _WRONG_TOKEN in str(error.__cause__):
            raise ConfigError(
                f"RAY_ADDRESS={address}: the cluster rejects the token of this process; set "
                "RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from None
        raise _no_cluster(address) from None
    except Exception as error:  # Ray raises these without a class
        if _OTHER_VERSION in str(error):
            raise ConfigError(f"RAY_ADDRESS={address}: {_versions_in(error)}") from None
        if not any(text in str(error) for text in _START_TIMEOUTS):
            raise
        raise CvbatchError(start_failure(time.monotonic() - begin)) from None
    finally:
        signal.signal(signal.SIGTERM, sigterm_handler)  # Ray's prints a stack and exits


@contextmanager
def _without(owner: Any, *names: str) -> Iterator[None]:
    """Replace functions of Ray by functions that do nothing, until the block ends."""
    with ExitStack() as stack:
        for name in names:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, lambda *_, **__: None)
        yield


def _versions_in(error: Exception) -> str:
    """Return Ray's message about both versions, in one line."""
    message = " ".join(str(error).split())
    return f"{message.removeprefix(_OTHER_VERSION + ': ')}; install the versions of the cluster"


def _check_address(address: str) -> None:
    """Refuse an address that accepts no connection: Ray itself would wait for minutes."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS={address} is a dashboard, which only accepts ray job submit; set "
            "HOST:6379 to join the cluster, or unset RAY_ADDRESS to run on this machine"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # no address, "auto" or "local"
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError:
        raise _no_cluster(address) from None


def _no_cluster(address: str) -> ConfigError:
    return ConfigError(
        f"RAY_ADDRESS={address}: no Ray cluster responds; start it, or unset RAY_ADDRESS to run on "
        "this machine"
    )
