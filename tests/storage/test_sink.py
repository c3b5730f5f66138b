"""A sink belongs to one command, contains one result, and has one writer at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cvbatch.core.errors import CvbatchError, SinkError
from cvbatch.storage import store
from cvbatch.storage.lease import HEARTBEAT_S, LEASE_PATH
from cvbatch.storage.sink import OWNERS, Sink
from cvbatch.storage.store import Storage
from tests.support.lease_holder import FAR, lease_holder
from tests.support.simulated_clock import SimulatedClock

EXCLUSIVE = [command for command, owner in OWNERS.items() if owner.is_exclusive]


@pytest.fixture(params=["local", "s3"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder in each kind of store."""
    if request.param == "local":
        yield str(tmp_path / "sink")
        return
    request.getfixturevalue("s3")
    yield f"s3://bucket/{tmp_path.name}"


def write(folder: Path, name: str, text: str = "") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def explanation(folder: Path | str, clock: SimulatedClock | None = None) -> Sink:
    return Sink(Storage(), str(folder), "explain", clock=clock or SimulatedClock())


@contextmanager
def running(folder: Path | str, clock: SimulatedClock | None = None) -> Iterator[Sink]:
    """Yield the sink of a run that has the lease and has written its state."""
    with explanation(folder, clock) as sink:
        sink.open("a", overwrite=True)
        sink.acquire()
        sink.write_state({"fingerprint": "a", "is_complete": False})
        yield sink


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", OWNERS)
def test_a_new_sink_has_no_state_and_nothing_is_written(home: str, command: str) -> None:
    with Sink(Storage(), home, command) as sink:
        assert sink.open("a") is None
        assert sink.open("a", overwrite=True) is None
        assert sink.read_state(dict) is None
        assert sink.names() == []
    assert Storage().list_names(home) == Storage().list_names(store.join(home, "_cvbatch")) == {}


@pytest.mark.parametrize("own", OWNERS)
@pytest.mark.parametrize("other", EXCLUSIVE)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_sink_belongs_to_the_command_that_wrote_into_it(
    tmp_path: Path, own: str, other: str, overwrite: bool
) -> None:
    write(tmp_path, f"_cvbatch/{OWNERS[other].state}.json", '{"fingerprint": "a"}')
    sink = Sink(Storage(), str(tmp_path), own)
    if own == other:
        sink.open("a", overwrite=overwrite)
        return
    with pytest.raises(SinkError, match=f"it belongs to `cvbatch {other}`; use another sink"):
        sink.open("a", overwrite=overwrite)


def test_a_state_is_returned_to_its_own_fingerprint_and_to_no_other(home: str) -> None:
    state = {"fingerprint": "a", "done": [1, 2], "name": "größe"}
    explanation(home).write_state(state)
    assert explanation(home).open("a") == state
    assert explanation(home).open("a", parse=len) == 3
    assert explanation(home).open() == state  # a command without fingerprints
    assert explanation(home).open("a", overwrite=True) is None
    message = r"contains another explanation \(fingerprint a, this job has bbbbbbbbbbbb\)"
    with pytest.raises(SinkError, match=message):
        explanation(home).open("b" * 64)
    assert explanation(home).open("b", overwrite=True) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"fingerprint": 1}', "\0"])
def test_a_damaged_state_is_refused_and_may_be_overwritten(tmp_path: Path, text: str) -> None:
    write(tmp_path, "_cvbatch/explain.json", text)
    with pytest.raises(SinkError, match=r"_cvbatch/explain.json is damaged; use another sink or"):
        explanation(tmp_path).open("a")
    assert explanation(tmp_path).open("a", overwrite=True) is None


@pytest.mark.parametrize("error", [ValueError, KeyError, TypeError, AttributeError])
def test_a_state_that_cannot_be_parsed_is_damaged(tmp_path: Path, error: type[Exception]) -> None:
    def parse(raw: dict[str, object]) -> None:
        raise error

    write(tmp_path, "_cvbatch/explain.json", '{"fingerprint": "a"}')
    with pytest.raises(SinkError, match="is damaged"):
        explanation(tmp_path).open("a", parse=parse)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *((command, "x.parquet") for command in ("predict", "evaluate", "explain", "import")),
        ("train", "model.keras"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_cvbatch_did_not_write_are_refused(
    home: str, command: str, name: str, overwrite: bool
) -> None:
    Storage().put_bytes(store.join(home, name), b"")
    with pytest.raises(SinkError, match=f"contains '{name}', which cvbatch did not write"):
        Sink(Storage(), home, command).open("a", overwrite=overwrite)
    Sink(Storage(), home, command).write_state({"fingerprint": "a"})
    assert Sink(Storage(), home, command).open("a") == {"fingerprint": "a"}


def test_a_sink_that_cannot_be_accessed_is_refused(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SinkError, match=r"the sink cannot be used: .*nobucket"):
        explanation("s3://nobucket/x").open("a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    sink = explanation("s3://bucket/x")
    for access in (sink.__enter__, lambda: sink.open("a"), sink.acquire, sink.names):
        with pytest.raises(SinkError, match="the sink cannot be used"):
            access()


# --- one writer ----------------------------------------------------------------------------------


def test_a_sink_in_use_is_refused_and_unchanged(home: str) -> None:
    clock = SimulatedClock()
    with running(home, clock) as first:
        before = Storage().list_names(store.join(home, "_cvbatch")).keys()
        second = explanation(home, clock)
        for start in (second.__enter__, second.acquire):
            with pytest.raises(SinkError, match=rf"in use by a run on .* \(process {os.getpid()}"):
                start()
        assert Storage().list_names(store.join(home, "_cvbatch")).keys() == before
        first.check()
    assert Storage().list_names(store.join(home, "_cvbatch")).keys() == before - {"lease.json"}


def test_another_process_is_refused_until_it_is_killed(tmp_path: Path) -> None:
    with lease_holder(tmp_path) as process:
        with pytest.raises(SinkError, match=rf"in use by .*process {process.pid}\)"):
            Sink(Storage(), str(tmp_path), "explain").__enter__()
        process.kill()
        process.wait()
        with explanation(tmp_path) as sink:
            sink.open("a")
            sink.acquire()
            assert sink.lease_token
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("before", [None, "old"])
def test_a_run_is_refused_if_another_ran_between_its_checks_and_its_lease(
    home: str, before: str | None
) -> None:
    if before:
        explanation(home).write_state({"fingerprint": before})
    with explanation(home) as slow:
        slow.open("b", overwrite=True)
        with running(home):
            pass
        with pytest.raises(SinkError, match="another run wrote into the sink"):
            slow.acquire()
    with explanation(home) as again:
        assert again.open("a") == {"fingerprint": "a", "is_complete": False}
        again.acquire()


def test_a_run_that_lost_its_lease_gets_no_further_item_and_writes_nothing(home: str) -> None:
    clock = SimulatedClock()
    with running(home, clock) as sink:
        items = []
        with pytest.raises(CvbatchError, match="taken over by a run on far") as error:
            for item in sink.guarded(range(5)):
                items.append(item)
                if item == 1:
                    Storage().put_bytes(store.join(home, LEASE_PATH), FAR.to_json())
                    clock.sleep(HEARTBEAT_S)
        assert (items, error.value.exit_status) == ([0, 1], 1)
        for action in (sink.check, lambda: sink.put("x", b""), lambda: sink.write_state({})):
            with pytest.raises(CvbatchError, match="taken over"):
                action()
    assert Storage().list_names(home) == {}
    assert explanation(home).open("a") == {"fingerprint": "a", "is_complete": False}


# --- clearing ------------------------------------------------------------------------------------

FILES = ["part-1.parquet", "part-2.parquet", "other.txt", "images/a/b.png", "images/c.png",
         "deep/part-3.parquet", "deep/keep.txt", "_cvbatch/training/checkpoint"]  # fmt: skip


def test_what_is_overwritten_is_removed_and_nothing_else(home: str) -> None:
    for name in FILES:
        Storage().put_bytes(store.join(home, name), b"x")
    explanation(home).write_state({"fingerprint": "a", "is_complete": True})
    with explanation(home) as sink:
        sink.open("b", overwrite=True)
        sink.acquire()
        sink.clear("part-*.parquet", "images", "deep/part-*", "_cvbatch/training", "missing/*")
        assert [name for name in FILES if Storage().exists(sink.join(name))] == [
            "other.txt", "deep/keep.txt",
        ]  # fmt: skip
        assert set(sink.names()) == {"other.txt", "deep", "_cvbatch"}
    # As if the run had been killed here: no job finds a result, and the same command continues.
    for fingerprint in ("a", "b"):
        with pytest.raises(SinkError, match=r"fingerprint none, .*--overwrite"):
            explanation(home).open(fingerprint)
    assert explanation(home).open("b", overwrite=True) is None


def test_nothing_is_cleared_in_a_sink_without_a_state(home: str) -> None:
    Storage().put_bytes(store.join(home, "images/mine.png"), b"x")
    sink = explanation(home)
    sink.open("a", overwrite=True)
    sink.clear("images")
    assert Storage().exists(sink.join("images/mine.png"))
    assert sink.read_state(dict) is None


@pytest.mark.parametrize("pattern", ["..", ".", "", "images/..", "mine"])
def test_only_what_is_in_the_sink_is_removed(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "sink/images/x")
    write(tmp_path, "mine/precious")
    (tmp_path / "sink" / "mine").symlink_to(tmp_path / "mine")
    explanation(tmp_path / "sink").remove(pattern)
    assert tree(tmp_path) == {"sink/images/x", "mine/precious"}
    assert (tmp_path / "sink" / "mine").is_symlink() == (pattern != "mine")


def test_temporary_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    ours = {".part-1.parquet-x.tmp", "_cvbatch/.job.json-x.tmp", "_cvbatch/a/b/.c-x.tmp",
            "images/.p-x.tmp", "images/deep/.p-x.tmp"}  # fmt: skip
    others = {"x.tmp", "elsewhere/.p-x.tmp", "part-1.parquet"}
    for name in ours | others:
        write(tmp_path, name)
    explanation(tmp_path).remove_leftovers("images", "missing")
    assert tree(tmp_path) == others


def test_the_temporary_file_of_a_living_writer_stays(tmp_path: Path) -> None:
    write(tmp_path, ".part-1.parquet-x.tmp")
    with (tmp_path / ".part-1.parquet-x.tmp").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        explanation(tmp_path).remove_leftovers()
        assert tree(tmp_path) == {".part-1.parquet-x.tmp"}


def test_a_store_has_no_leftovers(s3) -> None:
    explanation("s3://bucket/x").remove_leftovers("images")


# --- earlier versions ----------------------------------------------------------------------------


def test_the_state_file_is_plain_json_where_earlier_versions_look_for_it(tmp_path: Path) -> None:
    names = {"predict": "job", "train": "training", "evaluate": "evaluation",
             "explain": "explain", "import": "import", "export": "export"}  # fmt: skip
    for command, name in names.items():
        Sink(Storage(), str(tmp_path / command), command).write_state({"fingerprint": "ä"})
        path = tmp_path / command / "_cvbatch" / f"{name}.json"
        assert json.loads(path.read_bytes()) == {"fingerprint": "ä"}
