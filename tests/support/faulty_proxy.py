"""A proxy between a job and its storage that injects network faults into requests."""

from __future__ import annotations

import http.client
import http.server
import random
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection"}


class Request(NamedTuple):
    """Properties of a request by which a fault is chosen."""

    method: str
    path: str  # with the query
    number: int  # of equal requests, from 1
    total: int  # number of all requests, including this one


class Fault(NamedTuple):
    """A fault of a request; `share` is the fraction of the body sent before it."""

    kind: str  # answer | cut | cut_upload | hang | lie | refuse
    status: int = 503
    code: str = "SlowDown"
    share: float = 0.5


SLOW_DOWN = Fault("answer")
CUT = Fault("cut")  # the full length in the header, half of the bytes, connection closed
CUT_UPLOAD = Fault("cut_upload")  # half of the body reaches the store
HANG = Fault("hang", share=0.0)  # no response
HANG_IN_BODY = Fault("hang")
LIE = Fault("lie")  # half of the bytes, with their length in the header
REFUSE = Fault("refuse")  # the connection closed at once

Chooser = Callable[[Request], Fault | None]


def healthy(request: Request) -> Fault | None:
    return None


def down(request: Request) -> Fault | None:
    return REFUSE


def unwell(seed: int, busy: float = 0.20, cut: float = 0.05, hang: float = 0.05) -> Chooser:
    """Return a chooser of random faults with these probabilities, independent of request order.

    Half of the hangs are in the middle of the body. Requests with a body are cut in it.
    """

    def choose(request: Request) -> Fault | None:
        rng = random.Random(f"{seed} {request.method} {request.path} {request.number}")
        dice, half = rng.random(), rng.random() < 0.5
        if dice < busy:
            return SLOW_DOWN
        if dice < busy + cut:
            return CUT_UPLOAD if request.method in ("PUT", "POST") else CUT
        if dice < busy + cut + hang:
            return HANG_IN_BODY if half else HANG
        return None

    return choose


@dataclass
class Proxy:
    """A running proxy; `choose` can be replaced at any time."""

    store: str  # host:port of the storage server
    choose: Chooser = healthy
    endpoint: str = ""
    requests: list[Request] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)  # kind of fault, or "none" → count

    def __post_init__(self) -> None:
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self._numbers[method, path] += 1
            request = Request(method, path, self._numbers[method, path], len(self.requests) + 1)
            self.requests.append(request)
            fault = self.choose(request)
            self.done[fault.kind if fault else "none"] += 1
        return fault


@contextmanager
def proxied(endpoint: str, choose: Chooser = healthy) -> Iterator[Proxy]:
    """Serve until the block ends; hanging requests are then closed."""
    proxy = Proxy(urlsplit(endpoint).netloc, choose)
    stop, stopped = socket.socketpair()
    handler = type("Handler", (_Handler,), {"proxy": proxy, "stopped": stopped})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        proxy.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            stop.send(b"x")
            server.shutdown()
            thread.join()
    stop.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # responds to Expect: 100-continue
    proxy: Proxy
    stopped: socket.socket

    def handle_any(self) -> None:
        fault = self.proxy.fault(self.command, self.path)
        self.close_connection = True
        if fault is not None and fault.kind == "refuse":
            return
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.kind == "cut_upload" and length:
            self.forward(self.rfile.read(int(length * fault.share))).close()
            return
        body = self.rfile.read(length)
        if fault is not None and fault.kind == "hang" and fault.share == 0:
            self.hang()
        elif fault is not None and fault.kind == "answer":
            error = f"<Error><Code>{fault.code}</Code><Message>no</Message></Error>"
            headers = [("Content-Type", "application/xml")]
            self.reply(fault.status, headers, len(error), error.encode())
        else:
            self.relay(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

    def forward(self, body: bytes) -> http.client.HTTPConnection:
        """Forward the request unchanged, because its signature covers the headers."""
        connection = http.client.HTTPConnection(self.proxy.store)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                connection.putheader(name, value)
        connection.endheaders(body or None)
        return connection

    def relay(self, body: bytes, fault: Fault | None) -> None:
        connection = self.forward(body)
        try:
            response = connection.getresponse()
            data = response.read()
            headers = [
                (name, value)
                for name, value in response.getheaders()
                if name.lower() not in HOP_BY_HOP | {"content-length"}
            ]
            length = int(response.getheader("Content-Length") or len(data))
        finally:
            connection.close()
        if fault is None:
            self.reply(response.status, headers, length, data)
            return
        part = data[: int(len(data) * fault.share)]
        self.reply(response.status, headers, len(part) if fault.kind == "lie" else length, part)
        if fault.kind == "hang":
            self.hang()

    def reply(self, status: int, headers: list[tuple[str, str]], length: int, body: bytes) -> None:
        self.send_response_only(status)
        for name, value in [*headers, ("Content-Length", str(length)), ("Connection", "close")]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def hang(self) -> None:
        """Keep the connection open until the client or the proxy closes it."""
        select.select([self.connection, self.stopped], [], [])

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError, http.client.HTTPException):  # the client closed first
            super().handle()
