"""How long a local Ray may take to start: longer on a machine that is busy."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cvbatch.core.errors import ConfigError
from cvbatch.distributed import hardware

LIMIT_VARIABLE = "CVBATCH_RAY_START_S"
_DEFAULT_S = 60.0
_LEAST_S = 30.0  # Ray's own limit for a node to register, which cannot be shorter
_MAX_LOAD = 10.0
_POLL_S = 0.2


def start_limit_s() -> float:
    """Return the seconds that Ray may take to start.

    The limit, 60 or that of CVBATCH_RAY_START_S, is for a machine with a free CPU. It is multiplied
    by the processes that wait for each CPU (the load of the last minute), at most ten.

    Raises:
        ConfigError: the variable is no number of at least 30.
    """
    text = os.environ.get(LIMIT_VARIABLE, str(_DEFAULT_S))
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not _LEAST_S <= limit < math.inf:
        raise ConfigError(f"{LIMIT_VARIABLE}={text}: must be seconds, at least {_LEAST_S:g}")
    load = os.getloadavg()[0] / hardware.num_cpus()
    return limit * min(max(load, 1.0), _MAX_LOAD)


def start_failure(seconds: float) -> str:
    """Return the error message for a Ray that did not start within some seconds."""
    return (
        f"Ray did not start on this machine within {seconds:.0f} s: its node did not register, at "
        f"a load of {os.getloadavg()[0]:.1f} on {hardware.num_cpus()} CPUs; stop other programs, "
        f"or set {LIMIT_VARIABLE} to more seconds"
    )


@contextmanager
def waiting_for_node() -> Iterator[None]:
    """Let `ray.init` wait up to `start_limit_s` for its node, as the load is while it waits.

    Ray's own limit is 30 s, which no option changes: it calls `services.get_node` until then.
    """
    from ray._private import services

    limit_s = int(start_limit_s())
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", str(limit_s))
    os.environ.setdefault("RAY_agent_register_timeout_ms", str(1000 * limit_s))
    get_node = services.get_node

    def wait_for_node(*arguments: Any) -> Any:
        started = time.monotonic()
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # the node has not registered
                if time.monotonic() - started > start_limit_s():
                    raise
                time.sleep(_POLL_S)

    services.get_node = wait_for_node
    try:
        yield
    finally:
        services.get_node = get_node
