"""The same answers here, from this machine's processes and from a cluster; no process is left."""

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

DEADLINE_S = 30.0


def refuse_three(held, item):
    if item == 3:
        raise SourceError(f"{held} {item}")
    return item


def die_at_three(held, item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def process_id(held, item):
    return os.getpid()


class Counting:
    """Loaded once by a worker."""

    def __init__(self, shared):
        self.shared, self.started = shared, time.monotonic_ns()

    def __call__(self, item):
        return os.getpid(), self.started, self.shared


@pytest.mark.parametrize("workers", [1, 2])
def test_what_begin_raises_is_raised_here(workers, alone):
    with pytest.raises(SourceError, match="begin"):
        list(spread(workers).run(refuse_to_begin, "begin", range(3), "items"))


def refuse_to_begin(shared):
    raise SourceError(shared)


def sleeper(folder, item):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)


@pytest.fixture
def alone(monkeypatch):
    """No cluster, though another test of this session may have started one."""
    monkeypatch.setattr("cvbatch.distributed.parallel_map.joins_a_cluster", lambda: False)


def spread(workers):
    return ParallelMap(workers, RecordingListener())


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_comes_of_nothing(workers, alone):
    assert list(spread(workers).run(stateless(operator.pow), 2, [], "powers")) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_is_answered_once(workers, alone):
    answers = list(spread(workers).run(stateless(operator.pow), 3, range(40), "powers"))
    assert sorted(answers) == [3**i for i in range(40)]


@pytest.mark.ray
def test_a_cluster_answers_the_same(ray_session):
    assert sorted(spread(2).run(stateless(operator.pow), 3, range(9), "powers")) == [
        3**i for i in range(9)
    ]


def test_several_workers_are_processes_of_their_own(alone):
    seen = set(spread(2).run(stateless(process_id), None, range(40), "ids"))
    assert os.getpid() not in seen
    assert not any(map(psutil.pid_exists, seen))  # they ended with the last answer


@pytest.mark.parametrize("workers", [1, 2])
def test_each_worker_begins_once(workers, alone):
    counted = list(spread(workers).run(Counting, "a", range(40), "items"))
    by_process = {}
    for process, begun, shared in counted:
        by_process.setdefault(process, set()).add(begun)
        assert shared == "a"
    assert len(by_process) == workers
    assert all(len(begun) == 1 for begun in by_process.values())


@pytest.mark.ray
def test_a_worker_on_a_cluster_begins_once(ray_session):
    counted = list(spread(2).run(Counting, "a", range(40), "items"))
    assert len({(process, begun) for process, begun, _ in counted}) <= 2


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_call_raises_is_raised_here(workers, alone):
    with pytest.raises(SourceError, match="of 3"):
        list(spread(workers).run(stateless(refuse_three), "of", range(9), "items"))


def test_a_worker_that_dies_is_told(alone):
    with pytest.raises(CvbatchError, match="a worker died"):
        list(spread(2).run(stateless(die_at_three), None, range(9), "items"))


def test_workers_end_with_the_process_that_made_them(tmp_path):
    code = (
        "from tests.distributed.test_parallel_map import spread, sleeper, stateless\n"
        f"list(spread(2).run(stateless(sleeper), {str(tmp_path)!r}, range(4), 'sleepers'))\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    owner.kill()
    owner.wait()
    wait_until(lambda: not any(map(is_alive, workers)))


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # nobody may be left to reap it
    except psutil.NoSuchProcess:
        return False


def wait_until(is_so):
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
