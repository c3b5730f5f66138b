"""One run at a time in a sink: in every kind of store, alive, dead, killed, or all at once."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cvbatch.core.errors import CvbatchError, SinkError, StoreError
from cvbatch.storage import lease, store
from cvbatch.storage.conditional_write import conditional_file
from cvbatch.storage.lease import NAME, Holder, Lease, holder_in
from tests.support.s3_server import S3Server

FAR = Holder("far.example", "another boot", 7, "1", "2026-01-01T00:00:00+00:00", "abc", 3)


class Conditional(ThreadingHTTPServer):
    """Stands before the S3 server, which does not know conditions, and answers them.

    knows: whether it holds writers to them, or says that it cannot (501).
    """

    daemon_threads = True

    def __init__(self, behind: str, *, knows: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.knows = behind.removeprefix("http://"), knows
        self.tags: dict[str, str] = {}
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Conditional

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        with server.lock:
            tag = server.tags.get(self.path)
            fresh, same = self.headers.get("If-None-Match"), self.headers.get("If-Match")
            if (fresh or same) and not server.knows:
                return self._send(501, {}, b"<Error><Code>NotImplemented</Code></Error>")
            if (fresh and tag) or (same and same != tag):
                return self._send(412, {}, b"<Error><Code>PreconditionFailed</Code></Error>")
            behind = http.client.HTTPConnection(server.behind)
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                behind.putheader(name, value)
            behind.endheaders(body)
            answer = behind.getresponse()
            data = answer.read()
            behind.close()
            if self.command == "PUT":
                server.tags[self.path] = answer.headers["ETag"]
            elif self.command == "DELETE":
                server.tags.pop(self.path, None)
        return self._send(answer.status, dict(answer.headers.items()), data)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = _answer  # noqa: N815 - their names

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def conditional_s3(server: S3Server, *, knows: bool) -> Iterator[str]:
    with Conditional(server.endpoint, knows=knows) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy.endpoint
        proxy.shutdown()


KINDS = ["local", "s3 that ignores conditions", "s3 that knows them", "s3 that refuses them"]


@pytest.fixture(params=KINDS[:3])
def sink(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """A sink of every kind that there is."""
    if request.param == "local":
        yield str(tmp_path / "out")
        return
    with ExitStack() as stack:
        for name, value in s3_server.env.items():
            monkeypatch.setenv(name, value)
        if "ignores" not in request.param:
            proxy = conditional_s3(s3_server, knows="knows" in request.param)
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", stack.enter_context(proxy))
        yield f"s3://bucket/{tmp_path.name}"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    monkeypatch.setattr(lease, "PATIENCE_S", 1.0)
    monkeypatch.setattr(lease, "_LOOK_S", 0.02)


@dataclass
class Said:
    lines: list[str]

    def __call__(self, line: str) -> None:
        self.lines.append(line)


def silent(line: str) -> None:
    pass


def await_true(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def leave(sink: str, data: bytes) -> None:
    store.put_bytes(store.join(sink, NAME), data)


def is_lost(held: Lease) -> bool:
    try:
        held.check()
    except CvbatchError:
        return True
    return False


# --- the slot ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sink", KINDS, indirect=True)
def test_a_slot_is_written_over_what_was_seen_alone(sink: str, request) -> None:
    slot = conditional_file(store.join(sink, NAME))
    assert slot is not None
    assert slot.read() is None
    assert slot.put(b"one", None)
    one = slot.read()
    assert one is not None
    assert one.data == b"one"
    assert slot.put(b"two", one)
    knows = "ignores" not in request.node.name and "refuses" not in request.node.name
    assert slot.put(b"three", None) is not knows
    assert slot.put(b"four", one) is not knows
    assert slot.read().data == (b"two" if knows else b"four")  # type: ignore[union-attr]
    slot.remove()
    assert slot.read() is None


# --- the lease -----------------------------------------------------------------------------------


def test_nobody_is_there_and_nothing_is_written_until_it_is_taken(sink: str) -> None:
    said = Said([])
    with Lease(sink, said) as held:
        assert held.wait_until_free() is None
        assert holder_in(sink) is None
    assert store.list_names(store.join(sink, "_cvbatch")) == {}
    assert said.lines == []


def test_it_says_who_runs_beats_and_is_given_back(sink: str) -> None:
    with Lease(sink, silent) as held:
        held.take()
        holder = holder_in(sink)
        assert holder is not None
        assert (holder.pid, holder.is_dead_here) == (os.getpid(), False)
        await_true(lambda: (holder_in(sink) or holder).beat >= 2)
        held.check()
    assert store.list_names(store.join(sink, "_cvbatch")) == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt, CvbatchError, SystemExit])
def test_it_is_given_back_however_the_run_ends(tmp_path: Path, error) -> None:
    with pytest.raises(error), Lease(str(tmp_path), silent) as held:
        held.take()
        raise error
    assert not (tmp_path / NAME).exists()


def test_a_store_that_failed_is_not_asked_again(tmp_path: Path) -> None:
    with pytest.raises(StoreError), Lease(str(tmp_path), silent) as held:
        held.take()
        raise StoreError("down")
    assert (tmp_path / NAME).exists()


@pytest.mark.parametrize("sink", KINDS, indirect=True)
def test_a_second_run_is_refused_with_who_holds_it_and_leaves_it_alone(
    sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 60.0)
    with Lease(sink, silent) as first:
        first.take()
        said = Said([])
        started = time.monotonic()
        for begin in (Lease.wait_until_free, Lease.take):
            with pytest.raises(SinkError) as refusal, Lease(sink, said) as second:
                begin(second)
            assert f"(process {os.getpid()})" in str(refusal.value)
            assert "\n" not in str(refusal.value)
        assert time.monotonic() - started < 30  # at the first beat
        assert "looking for" in said.lines[0]
        first.check()
        assert holder_in(sink) is not None


def test_a_holder_elsewhere_without_a_beat_is_waited_for_and_succeeded(
    sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(sink, FAR.content)
    with Lease(sink, silent) as held:
        started = time.monotonic()
        held.wait_until_free()
        assert time.monotonic() - started >= lease.PATIENCE_S
        monkeypatch.setattr(lease, "PATIENCE_S", 600.0)
        held.take()  # it was watched already
        assert holder_in(sink) != FAR
    assert holder_in(sink) is None


def test_a_holder_that_ends_while_it_is_watched_is_succeeded_at_once(
    sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 600.0)
    with ExitStack() as first:
        first.enter_context(Lease(sink, silent)).take()
        leave(sink, FAR.content)  # as a second run sees it, between two beats
        removal = threading.Timer(0.3, store.delete, [store.join(sink, NAME)])
        removal.start()
        with Lease(sink, silent) as second:
            assert second.wait_until_free() is None
        removal.join()


def test_who_was_taken_over_is_told_so_and_leaves_the_lease_alone(sink: str) -> None:
    with Lease(sink, silent) as held:
        held.take()
        leave(sink, FAR.content)
        await_true(lambda: is_lost(held))
        with pytest.raises(CvbatchError, match=r"taken over by a run on far\.example") as told:
            held.check()
        assert told.value.exit_status == 1
    assert holder_in(sink) == FAR


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"host": "x"}', b"\xff\xfe"])
def test_a_damaged_lease_is_watched_like_any_other(tmp_path: Path, data: bytes) -> None:
    leave(str(tmp_path), data)
    with Lease(str(tmp_path), silent) as held:
        held.take()
        held.check()
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_of_many_that_begin_at_once_one_is_left(sink: str, is_abandoned: bool) -> None:
    if is_abandoned:
        leave(sink, FAR.content)
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        runs = [stack.enter_context(Lease(sink, silent)) for _ in range(4)]
        ready = threading.Barrier(4)

        def take(run: Lease) -> bool:
            run.wait_until_free()
            ready.wait()
            try:
                run.take()
            except SinkError:
                return False
            return True

        holders = [run for run, has in zip(runs, pool.map(take, runs), strict=True) if has]
        # where the store knows no conditions several may begin; the next beats leave one
        await_true(lambda: sum(not is_lost(run) for run in holders) == 1)
        (last,) = [run for run in holders if not is_lost(run)]
        before = holder_in(sink)
        await_true(lambda: (holder_in(sink) or before) != before)
        assert not is_lost(last)
    assert holder_in(sink) is None


# --- processes -----------------------------------------------------------------------------------

TAKES = """
import sys, time
from cvbatch.storage.lease import Lease
lease = Lease(sys.argv[1], print)
lease.take()
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def holding(sink: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that holds a sink, beating as a run does."""
    command = [sys.executable, "-c", TAKES, sink]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_killed_process_of_this_machine_is_succeeded_at_once(
    sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 60.0)
    with holding(sink) as process:
        assert holder_in(sink).pid == process.pid  # type: ignore[union-attr]
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet buried
        assert holder_in(sink) is None
        process.wait()
        started = time.monotonic()
        with Lease(sink, silent) as held:
            held.take()
            assert time.monotonic() - started < 30
            held.check()


def test_a_stopped_process_is_taken_over_and_ends_when_it_wakes(tmp_path: Path) -> None:
    """As a machine that sleeps: it lives, but nobody can know."""
    with holding(str(tmp_path)) as process:
        process.send_signal(signal.SIGSTOP)
        await_true(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T")
        with Lease(str(tmp_path), silent) as held:
            held.take()
            token = json.loads((tmp_path / NAME).read_text())["token"]
            process.send_signal(signal.SIGCONT)
            before = holder_in(str(tmp_path))
            await_true(lambda: (holder_in(str(tmp_path)) or before) != before)
            assert json.loads((tmp_path / NAME).read_text())["token"] == token
            held.check()


def test_a_process_id_that_another_process_has_now_is_not_the_holder() -> None:
    here = Holder.here()
    assert not here.is_dead_here
    assert here._replace(pid_started="0").is_dead_here
    assert not here._replace(pid_started="0", machine="another boot").is_dead_here
    assert not here._replace(pid_started="0", machine="").is_dead_here


def test_a_store_without_conditions_for_pyarrow_says_so_once() -> None:
    said = Said([])
    with Lease("gs://bucket/out", said) as held:
        assert held.wait_until_free() is None
        held.take()
        held.check()
    assert len(said.lines) == 1
    assert "no second one" in said.lines[0]


def test_a_sink_that_may_not_be_written_is_refused(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = "s3://bucket/denied"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for begin in (Lease.wait_until_free, Lease.take):
        with pytest.raises(SinkError, match="the sink cannot be used"), Lease(sink, silent) as held:
            begin(held)
