"""A local Ray has more time to start on a busy machine."""

from __future__ import annotations

import time

import pytest

from cvbatch.core.errors import ConfigError
from cvbatch.distributed import hardware, ray_start


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The load of the last minute, on a machine with four CPUs; tests change it."""
    values = [0.0]
    monkeypatch.setattr(hardware, "num_cpus", lambda: 4)
    monkeypatch.setattr("os.getloadavg", lambda: (values[0], 0.0, 0.0))
    for name in ("RAY_gcs_server_port_wait_time_s", "RAY_agent_register_timeout_ms"):
        monkeypatch.setenv(name, "60000")
    monkeypatch.delenv(ray_start.LIMIT_VARIABLE, raising=False)
    return values


@pytest.mark.parametrize(("processes", "limit_s"), [(0, 60), (4, 60), (8, 120), (400, 600)])
def test_the_limit_grows_with_the_load_per_cpu(
    load: list[float], processes: float, limit_s: float
) -> None:
    load[0] = processes
    assert ray_start.start_limit_s() == limit_s


def test_the_variable_sets_the_limit(load: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ray_start.LIMIT_VARIABLE, "300")
    load[0] = 6
    assert ray_start.start_limit_s() == 450
    assert ray_start.LIMIT_VARIABLE in ray_start.start_failure(450)


@pytest.mark.parametrize("text", ["", "5", "-1", "nan", "inf", "one minute"])
def test_other_values_of_the_variable_are_refused(
    load: list[float], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(ray_start.LIMIT_VARIABLE, text)
    with pytest.raises(ConfigError, match="must be seconds, at least 30"):
        ray_start.start_limit_s()


@pytest.mark.parametrize(("registers_after_s", "processes"), [(50, 0), (110, 8), (70, 0)])
def test_a_node_that_registers_within_the_limit_is_waited_for(
    load: list[float], monkeypatch: pytest.MonkeyPatch, registers_after_s: float, processes: float
) -> None:
    from ray._private import services

    seconds = [0.0]

    def get_node(address: str) -> str:
        if seconds[0] < registers_after_s:
            raise RuntimeError("no such node")
        return f"node at {address}"

    load[0] = processes
    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(time, "sleep", lambda s: seconds.__setitem__(0, seconds[0] + s))
    with ray_start.waiting_for_node():
        if registers_after_s < ray_start.start_limit_s():
            assert services.get_node("a") == "node at a"
        else:
            with pytest.raises(RuntimeError):
                services.get_node("a")
    assert services.get_node is get_node
