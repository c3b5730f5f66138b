"""Chunks outlive their workers: what dies is replaced, and what keeps dying stops the job."""

import os
import sys
import time
from types import SimpleNamespace

import pytest

from cvbatch.core.errors import CvbatchError, SinkError
from cvbatch.core.types import Chunk, ChunkRef, ChunkReport, Item
from cvbatch.distributed.resources import Allocation
from cvbatch.predict import ray_actor_pool
from cvbatch.storage.store import Storage

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _carried(ray_session):
    """Ray's workers cannot import this module: its class goes to them whole."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Worker:
    """Does what a chunk's name says, in place of reading, predicting and writing.

    In the folder of its spec it leaves a file for each chunk and way that it begins.
    """

    def load(self, spec):
        self._folder = folder = spec.folder
        if (folder / "no start").exists():
            os._exit(1)

    def work(self, ref, *, is_careful):
        said = ref.chunk_id
        (self._folder / f"{said} {'careful' if is_careful else 'plain'} {os.getpid()}").touch()
        deaths = len(list(self._folder.glob(f"{said} *")))
        if said == "refused":
            raise SinkError("the sink is full")
        if said == "together":
            deadline = time.monotonic() + 60
            while len(list(self._folder.glob("together *"))) < 2:  # not before another one has it
                if time.monotonic() > deadline:
                    raise TimeoutError
                time.sleep(0.01)
        if said.startswith("dies") and deaths <= int(said[-1]):
            os._exit(1)
        return ChunkReport(said, 1, {}, 0, {})


def run(monkeypatch, folder, names, num_actors=1, max_actors=1):
    monkeypatch.setattr(ray_actor_pool, "FusedWorker", Worker)
    monkeypatch.setattr(ray_actor_pool, "_LOOK_S", 0.1)
    refs = [ChunkRef(name, "", 0, 0, 1, 1, 1) for name in names]
    spec = SimpleNamespace(folder=folder, storage=Storage())
    wiring = Allocation("fused", num_actors, 0.5, 0.0, max_actors)
    return [report.chunk_id for report in ray_actor_pool.ActorPool(wiring).run(refs, spec)]


def ways(folder, name):
    """Return how a chunk was begun, in the order of time."""
    paths = sorted(folder.glob(f"{name} *"), key=lambda path: path.stat().st_mtime_ns)
    return [path.name.split()[1] for path in paths]


def test_no_chunks_no_reports(monkeypatch, tmp_path):
    assert run(monkeypatch, tmp_path, []) == []


def test_every_chunk_is_done_once(monkeypatch, tmp_path):
    names = [f"chunk{i}" for i in range(20)]
    assert sorted(run(monkeypatch, tmp_path, names, 2, 2)) == sorted(names)
    assert [ways(tmp_path, name) for name in names] == [["plain"]] * 20


@pytest.mark.parametrize(
    ("deaths", "expected"),
    [
        (1, ["plain", "plain"]),
        (2, ["plain", "plain", "careful"]),
        (3, ["plain", "plain", "careful", "careful"]),
    ],
)
def test_a_chunk_is_done_again_and_in_the_end_with_care(monkeypatch, tmp_path, deaths, expected):
    name = f"dies{deaths}"
    assert run(monkeypatch, tmp_path, [name, "after"]) == [name, "after"]  # it keeps its place
    assert ways(tmp_path, name) == expected
    assert ways(tmp_path, "after") == ["plain"]


def test_a_chunk_that_dies_of_care_stops_the_job_with_its_name(monkeypatch, tmp_path):
    items = (Item("/a/first.jpg", "first.jpg", 1), Item("/a/last.jpg", "last.jpg", 1))
    monkeypatch.setattr(
        ray_actor_pool, "read_chunk", lambda storage, ref: Chunk(ref.chunk_id, items)
    )
    said = "chunk dies4 took its worker down 4 times.* 'first.jpg' to 'last.jpg'"
    with pytest.raises(CvbatchError, match=said):
        run(monkeypatch, tmp_path, ["before", "dies4", "after"])
    assert ways(tmp_path, "dies4") == ["plain", "plain", "careful", "careful"]
    assert ways(tmp_path, "after") == []


def test_workers_that_never_come_up_stop_the_job(monkeypatch, tmp_path):
    (tmp_path / "no start").touch()
    with pytest.raises(CvbatchError, match="3 workers in a row died before they were ready"):
        run(monkeypatch, tmp_path, ["a", "b", "c", "d"])
    assert ways(tmp_path, "a") == []


def test_a_worker_that_raises_at_its_start_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setattr(Worker, "__init__", lambda self: 1 / 0)
    with pytest.raises(CvbatchError, match="the last: ZeroDivisionError: division by zero; look"):
        run(monkeypatch, tmp_path, ["a"])


def test_no_worker_at_all_stops_the_job_in_the_end(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_actor_pool, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(ray_actor_pool, "FusedWorker", Worker)
    refs = [ChunkRef("a", "", 0, 0, 1, 1, 1)]
    lonely = ray_actor_pool.ActorPool(Allocation("fused", 1, 64.0, 0.0, 1))
    monkeypatch.setattr(ray_actor_pool, "_LOOK_S", 0.1)
    with pytest.raises(CvbatchError, match=r"no worker: each asks for 64 CPU and 0 GPU"):
        list(lonely.run(refs, SimpleNamespace(storage=Storage())))


def test_what_a_worker_raises_is_not_tried_again(monkeypatch, tmp_path):
    with pytest.raises(SinkError, match="the sink is full"):
        run(monkeypatch, tmp_path, ["refused"])
    assert ways(tmp_path, "refused") == ["plain"]


def test_room_that_the_cluster_has_gained_is_used(monkeypatch, tmp_path):
    """Two chunks that wait for each other: one actor alone would never end."""
    names = ["together", "together"]
    assert run(monkeypatch, tmp_path, names, num_actors=1, max_actors=2) == names


def test_no_more_actors_than_there_are_chunks_for(monkeypatch, tmp_path):
    names = [f"chunk{i}" for i in range(8)]
    assert sorted(run(monkeypatch, tmp_path, names, num_actors=1, max_actors=1)) == names
    pids = {path.name.split()[2] for path in tmp_path.glob("chunk*")}
    assert len(pids) == 1
