"""One writer at a time in a sink: in every kind of store, with runs that live, hang or are killed.

Time is simulated: no test waits for a heartbeat or a timeout.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cvbatch.core.errors import CvbatchError, SinkError, StoreError
from cvbatch.storage import store
from cvbatch.storage.conditional_write import Content, conditional_file
from cvbatch.storage.lease import (
    HEARTBEAT_S,
    LEASE_PATH,
    LEASE_TIMEOUT_S,
    Holder,
    Lease,
    check_token,
    current_holder,
)
from cvbatch.storage.store import Storage
from tests.support.lease_holder import FAR, FastClock, lease_holder
from tests.support.s3_server import S3Server
from tests.support.simulated_clock import SimulatedClock
from tests.support.waiting import until

pytestmark = pytest.mark.process


class Conditional(ThreadingHTTPServer):
    """A proxy that adds conditional writes to the S3 server, which lacks them.

    Args:
        endpoint: URL of the S3 server.
        is_supported: Whether conditions are checked, or refused with status 501.
    """

    daemon_threads = True

    def __init__(self, endpoint: str, *, is_supported: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = endpoint.removeprefix("http://")
        self.is_supported = is_supported
        self.tags: dict[str, str] = {}
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body of a response waits 40 ms for an ACK
    server: Conditional

    def _forward(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # the client was killed
            return None
        server = self.server
        with server.lock:
            tag = server.tags.get(self.path)
            fresh, same = self.headers.get("If-None-Match"), self.headers.get("If-Match")
            if (fresh or same) and not server.is_supported:
                return self._send(501, {}, b"<Error><Code>NotImplemented</Code></Error>")
            if (fresh and tag) or (same and same != tag):
                return self._send(412, {}, b"<Error><Code>PreconditionFailed</Code></Error>")
            client = http.client.HTTPConnection(server.upstream)
            client.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                client.putheader(name, value)
            client.endheaders(body)
            response = client.getresponse()
            data = response.read()
            client.close()
            if self.command == "PUT":
                server.tags[self.path] = response.headers["ETag"]
            elif self.command == "DELETE":
                server.tags.pop(self.path, None)
        return self._send(response.status, dict(response.headers.items()), data)

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

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = _forward  # noqa: N815 - names of the base class

    def log_message(self, format: str, *args: object) -> None:
        pass


KINDS = [
    "local",
    "s3 that ignores conditions",
    "s3 that supports conditions",
    "s3 that refuses conditions",
]


@pytest.fixture(scope="module")
def endpoints(s3_server: S3Server) -> Iterator[dict[str, str]]:
    """An S3 server of every kind; shared, because the first client of an endpoint takes a while."""
    with ExitStack() as stack:
        urls = {KINDS[1]: s3_server.endpoint}
        for kind in KINDS[2:]:
            proxy = stack.enter_context(
                Conditional(s3_server.endpoint, is_supported="supports" in kind)
            )
            threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(proxy.shutdown)
            urls[kind] = proxy.endpoint
        yield urls


@pytest.fixture(params=KINDS[:3])
def sink(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    s3_server: S3Server,
    endpoints: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """A new sink in every kind of store."""
    if request.param == "local":
        return str(tmp_path / "out")
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoints[request.param])
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


def silent(line: str) -> None:
    pass


def write_lease(sink: str, data: bytes) -> None:
    Storage().put_bytes(store.join(sink, LEASE_PATH), data)


def is_lost(lease: Lease) -> bool:
    try:
        lease.check()
    except CvbatchError:
        return True
    return False


# --- conditional writes ---------------------------------------------------------------------------


@pytest.mark.parametrize("sink", KINDS, indirect=True)
def test_a_file_is_replaced_only_if_it_has_not_changed(sink: str, request) -> None:
    file = conditional_file(Storage(), store.join(sink, LEASE_PATH))
    assert file is not None
    assert file.read() is None
    assert file.put(b"one", None)
    first = file.read()
    assert first is not None
    assert first.data == b"one"
    assert file.put(b"two", first)
    is_supported = "ignores" not in request.node.name and "refuses" not in request.node.name
    assert file.put(b"three", None) is not is_supported
    assert file.put(b"four", first) is not is_supported
    assert file.read().data == (b"two" if is_supported else b"four")  # type: ignore[union-attr]
    file.remove()
    assert file.read() is None


# --- the lease -----------------------------------------------------------------------------------


def test_a_new_sink_is_free_and_nothing_is_written_before_the_lease_is_acquired(
    sink: str, clock: SimulatedClock
) -> None:
    lines: list[str] = []
    with Lease(Storage(), sink, lines.append, clock) as lease:
        assert lease.wait_until_free() is None
        assert current_holder(Storage(), sink) is None
        assert lease.token == ""
    assert Storage().list_names(store.join(sink, "_cvbatch")) == {}
    assert (lines, clock.now()) == ([], 0.0)


def test_it_names_the_run_counts_heartbeats_and_is_released(
    sink: str, clock: SimulatedClock
) -> None:
    with Lease(Storage(), sink, silent, clock) as lease:
        lease.acquire()
        holder = current_holder(Storage(), sink)
        assert holder is not None
        assert (holder.pid, holder.is_known_dead, holder.beat) == (os.getpid(), False, 0)
        assert holder.token == lease.token
        clock.sleep(3 * HEARTBEAT_S)
        assert current_holder(Storage(), sink) == holder._replace(beat=3)
        lease.check()
        check_token(Storage(), sink, lease.token)
    assert Storage().list_names(store.join(sink, "_cvbatch")) == {}
    clock.sleep(3 * HEARTBEAT_S)
    assert Storage().list_names(store.join(sink, "_cvbatch")) == {}  # heartbeats have ended


def test_a_run_that_writes_nothing_leaves_no_folder(tmp_path: Path) -> None:
    for name, is_left in {"new": False, "deep/new": False, "mine": True, "used": True}.items():
        sink = tmp_path / name
        if name == "mine":
            sink.mkdir()
        with Lease(Storage(), str(sink), silent, SimulatedClock()) as lease:
            lease.acquire()
            if name == "used":
                (sink / "x").touch()
        assert sink.exists() == is_left
        assert not (sink / "_cvbatch").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "used"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, CvbatchError, SystemExit])
def test_it_is_released_however_the_run_ends(tmp_path: Path, error) -> None:
    with pytest.raises(error), Lease(Storage(), str(tmp_path), silent, SimulatedClock()) as lease:
        lease.acquire()
        raise error
    assert not (tmp_path / LEASE_PATH).exists()


def test_a_store_that_failed_gets_no_further_request(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError),
        Lease(Storage(), str(tmp_path), silent, SimulatedClock()) as lease,
    ):
        lease.acquire()
        raise StoreError("down")
    assert (tmp_path / LEASE_PATH).exists()


def test_a_heartbeat_that_fails_does_not_end_the_run(
    tmp_path: Path, clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(storage: Storage, uri: str, data: bytes) -> None:
        raise StoreError("down")

    with Lease(Storage(), str(tmp_path), silent, clock) as lease:
        lease.acquire()
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "put_bytes", failing)
            clock.sleep(2 * HEARTBEAT_S)
        lease.check()
        clock.sleep(HEARTBEAT_S)
        assert current_holder(Storage(), str(tmp_path)).beat == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("sink", KINDS, indirect=True)
def test_a_second_run_is_refused_at_the_first_heartbeat_with_the_holder(
    sink: str, clock: SimulatedClock
) -> None:
    with Lease(Storage(), sink, silent, clock) as first:
        first.acquire()
        lines: list[str] = []
        for begin in (Lease.wait_until_free, Lease.acquire):
            started_s = clock.now()
            with (
                pytest.raises(SinkError) as refusal,
                Lease(Storage(), sink, lines.append, clock) as second,
            ):
                begin(second)
            assert f"(process {os.getpid()})" in str(refusal.value)
            assert "\n" not in str(refusal.value)
            assert clock.now() - started_s <= HEARTBEAT_S + 1
        assert "waiting up to 20 s for its heartbeat" in lines[0]
        first.check()
        assert current_holder(Storage(), sink).token == first.token  # type: ignore[union-attr]


def test_a_run_elsewhere_without_a_heartbeat_is_replaced_after_the_timeout(
    sink: str, clock: SimulatedClock
) -> None:
    write_lease(sink, FAR.to_json())
    with Lease(Storage(), sink, silent, clock) as lease:
        lease.wait_until_free()
        assert clock.now() == pytest.approx(LEASE_TIMEOUT_S)
        lease.acquire()
        assert clock.now() == pytest.approx(LEASE_TIMEOUT_S)  # it is not watched a second time
        assert current_holder(Storage(), sink).token == lease.token  # type: ignore[union-attr]
    assert current_holder(Storage(), sink) is None


def test_a_run_that_ends_while_it_is_watched_is_replaced_at_once(
    sink: str, clock: SimulatedClock
) -> None:
    write_lease(sink, FAR.to_json())
    clock.repeat(lambda: Storage().delete(store.join(sink, LEASE_PATH)), 3.0)
    with Lease(Storage(), sink, silent, clock) as lease:
        assert lease.wait_until_free() is None
        assert clock.now() < 4.0


def test_a_run_that_lost_the_lease_stops_and_does_not_remove_it(
    sink: str, clock: SimulatedClock
) -> None:
    with Lease(Storage(), sink, silent, clock) as lease:
        lease.acquire()
        write_lease(sink, FAR.to_json())
        clock.sleep(HEARTBEAT_S)
        for check in (lease.check, lambda: check_token(Storage(), sink, lease.token)):
            with pytest.raises(CvbatchError, match=r"taken over by a run on far\.example") as error:
                check()
            assert error.value.exit_status == 1
        clock.sleep(HEARTBEAT_S)
    assert current_holder(Storage(), sink) == FAR


def test_a_lease_that_another_run_took_and_released_is_lost(
    sink: str, clock: SimulatedClock
) -> None:
    with Lease(Storage(), sink, silent, clock) as lease:
        lease.acquire()
        Storage().delete(store.join(sink, LEASE_PATH))
        clock.sleep(HEARTBEAT_S)
        for check in (lease.check, lambda: check_token(Storage(), sink, lease.token)):
            with pytest.raises(CvbatchError, match="another run, which has ended since"):
                check()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"host": "x"}', b"\xff\xfe"])
def test_a_damaged_lease_is_watched_like_any_other(
    tmp_path: Path, clock: SimulatedClock, data: bytes
) -> None:
    write_lease(str(tmp_path), data)
    with Lease(Storage(), str(tmp_path), silent, clock) as lease:
        lease.acquire()
        assert clock.now() == pytest.approx(LEASE_TIMEOUT_S)
        assert json.loads((tmp_path / LEASE_PATH).read_text())["token"] == lease.token


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_of_many_runs_that_start_at_once_one_remains(
    sink: str, clock: SimulatedClock, is_abandoned: bool
) -> None:
    if is_abandoned:
        write_lease(sink, FAR.to_json())
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        runs = [stack.enter_context(Lease(Storage(), sink, silent, clock)) for _ in range(4)]
        ready = threading.Barrier(4)

        def acquire(run: Lease) -> bool:
            run.wait_until_free()
            ready.wait()
            try:
                run.acquire()
            except SinkError:
                return False
            return True

        holders = [run for run, has in zip(runs, pool.map(acquire, runs), strict=True) if has]
        # In a store without conditional writes several may start; the next heartbeats leave one.
        clock.sleep(2 * HEARTBEAT_S)
        (last,) = [run for run in holders if not is_lost(run)]
        assert current_holder(Storage(), sink).token == last.token  # type: ignore[union-attr]
    assert current_holder(Storage(), sink) is None


# --- processes -----------------------------------------------------------------------------------


def test_the_real_clock_sends_heartbeats_until_the_end(tmp_path: Path) -> None:
    with Lease(Storage(), str(tmp_path), silent, FastClock()) as lease:
        lease.acquire()
        until(lambda: (current_holder(Storage(), str(tmp_path)) or FAR).beat >= 1, "a heartbeat")
    assert [thread for thread in threading.enumerate() if thread.name == "heartbeat"] == []


def test_a_killed_process_of_this_machine_is_replaced_at_once(
    tmp_path: Path, clock: SimulatedClock
) -> None:
    sink = str(tmp_path)
    with lease_holder(sink) as process:
        assert current_holder(Storage(), sink).pid == process.pid  # type: ignore[union-attr]
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie
        assert current_holder(Storage(), sink) is None
        process.wait()
        with Lease(Storage(), sink, silent, clock) as lease:
            lease.acquire()
            assert clock.now() == 0.0


def test_a_stopped_process_is_replaced_and_loses_the_lease_when_it_goes_on(
    tmp_path: Path, clock: SimulatedClock
) -> None:
    """Like the process of a suspended machine: it looks dead, and is not."""
    with lease_holder(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T", "its stop")
        with Lease(Storage(), str(tmp_path), silent, clock) as lease:
            lease.acquire()
            process.send_signal(signal.SIGCONT)
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("wait until the lease is lost\n")
            process.stdin.close()
            assert "taken over by a run on" in process.stdout.read()
            assert json.loads((tmp_path / LEASE_PATH).read_text())["token"] == lease.token


def test_a_process_id_that_another_process_has_now_is_not_the_holder() -> None:
    this = Holder.this_process()
    assert not this.is_known_dead
    assert this._replace(pid_started="0").is_known_dead
    assert not this._replace(pid_started="0", machine="another boot").is_known_dead
    assert not this._replace(pid_started="0", machine="").is_known_dead


def test_the_lease_file_has_the_keys_of_earlier_versions() -> None:
    keys = ["host", "machine", "pid", "pid_started", "started", "token", "beat"]
    assert list(json.loads(FAR.to_json())) == keys
    assert Holder.parse(Content(FAR.to_json(), "")) == FAR


def test_a_store_without_conditional_writes_is_reported_once(clock: SimulatedClock) -> None:
    lines: list[str] = []
    with Lease(Storage(), "gs://bucket/out", lines.append, clock) as lease:
        assert lease.wait_until_free() is None
        lease.acquire()
        lease.check()
        check_token(Storage(), "gs://bucket/out", lease.token)
    assert len(lines) == 1
    assert "make sure that no second run" in lines[0]


def test_a_sink_that_may_not_be_written_is_refused(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = "s3://bucket/denied"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for begin in (Lease.wait_until_free, Lease.acquire):
        with pytest.raises(SinkError, match="the sink cannot be used"):
            begin(Lease(Storage(), sink, silent, SimulatedClock()))
