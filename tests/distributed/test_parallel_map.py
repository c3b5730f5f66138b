"""ParallelMap gives the same results in this process, in child processes and on Ray."""

import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cvbatch.core.errors import CvbatchError, SourceError
from cvbatch.distributed.parallel_map import ParallelMap, stateless
from tests.support.jobs import RecordingListener
from tests.support.waiting import has_ended, until

pytestmark = pytest.mark.process


def refuse_three(shared, item):
    if item == 3:
        raise SourceError(f"{shared} {item}")
    return item


def die_at_three(shared, item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def process_id(shared, item):
    return os.getpid()


class LoadedState:
    """State that a worker loads once."""

    def __init__(self, shared):
        self.shared, self.started = shared, time.monotonic_ns()

    def __call__(self, item):
        return os.getpid(), self.started, self.shared


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_begin_is_raised_again(workers, alone):
    with pytest.raises(SourceError, match="begin"):
        list(parallel_map(workers).run(refuse_to_begin, "begin", range(3)))


def refuse_to_begin(shared):
    raise SourceError(shared)


def sleeper(folder, item):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)


@pytest.fixture
def alone(monkeypatch):
    """Use no cluster, even if another test of this session has started one."""
    monkeypatch.setattr("cvbatch.distributed.parallel_map.joins_a_cluster", lambda: False)


def parallel_map(workers):
    return ParallelMap(workers, RecordingListener())


@pytest.mark.parametrize("workers", [1, 2])
def test_no_items_give_no_results(workers, alone):
    assert list(parallel_map(workers).run(stateless(operator.pow), 2, [])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_has_one_result(workers, alone):
    results = list(parallel_map(workers).run(stateless(operator.pow), 3, range(40)))
    assert sorted(results) == [3**i for i in range(40)]


@pytest.mark.ray
def test_a_cluster_gives_the_same_results(ray_session):
    assert sorted(parallel_map(2).run(stateless(operator.pow), 3, range(9))) == [
        3**i for i in range(9)
    ]


def test_several_workers_are_child_processes(alone):
    pids = set(parallel_map(2).run(stateless(process_id), None, range(40)))
    assert os.getpid() not in pids
    assert not any(map(psutil.pid_exists, pids))  # they ended with the last result


@pytest.mark.parametrize("workers", [1, 2])
def test_each_worker_calls_begin_once(workers, alone):
    results = list(parallel_map(workers).run(LoadedState, "a", range(40)))
    by_process = {}
    for process, begun, shared in results:
        by_process.setdefault(process, set()).add(begun)
        assert shared == "a"
    assert len(by_process) == workers
    assert all(len(begun) == 1 for begun in by_process.values())


@pytest.mark.ray
def test_a_worker_on_a_cluster_calls_begin_once(ray_session):
    results = list(parallel_map(2).run(LoadedState, "a", range(40)))
    assert len({(process, begun) for process, begun, _ in results}) <= 2


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_a_call_is_raised_again(workers, alone):
    with pytest.raises(SourceError, match="of 3"):
        list(parallel_map(workers).run(stateless(refuse_three), "of", range(9)))


def test_the_death_of_a_worker_is_reported(alone):
    with pytest.raises(CvbatchError, match="a worker died"):
        list(parallel_map(2).run(stateless(die_at_three), None, range(9)))


def test_workers_end_with_their_parent_process(tmp_path):
    code = (
        "from tests.distributed.test_parallel_map import parallel_map, sleeper, stateless\n"
        f"list(parallel_map(2).run(stateless(sleeper), {str(tmp_path)!r}, range(4)))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    until(lambda: len(list(tmp_path.iterdir())) == 2, "both workers")
    workers = [int(path.name) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    until(lambda: all(map(has_ended, workers)), "the end of the workers")
