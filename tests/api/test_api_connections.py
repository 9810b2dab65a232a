"""Connections that request nothing, or slowly, or too much: how long they stay, and that others are served."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sync_orchestrator.api import connections, serve
from sync_orchestrator.api.connections import GuardedProtocol
from sync_orchestrator.api.log_limits import Repeats, summarise_repeats

SOON = 0.3


class Service:
    """A small application behind the protocol, on a real port."""

    def __init__(self, limit: int) -> None:
        self.release = threading.Event()
        routes = [Route("/", self._now), Route("/body", self._body, methods=["POST"]), Route("/large", self._large)]
        self._server = uvicorn.Server(
            uvicorn.Config(
                Starlette(routes=routes),
                http=GuardedProtocol,
                ws="none",
                log_level="critical",
                access_log=False,
                limit_concurrency=limit,
                timeout_keep_alive=30,
                lifespan="off",
            )
        )
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(1000)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    async def _now(self, request: Request) -> Response:
        return PlainTextResponse("ok")

    async def _body(self, request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async def _large(self, request: Request) -> Response:
        return PlainTextResponse("x" * 50_000_000)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        self._socket.close()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(connections, "HEAD_SECONDS", SOON)
    made = Service(limit=20)
    yield made
    made.stop()


def everything(one: socket.socket) -> bytes:
    """What comes until the end of the connection."""
    found = b""
    try:
        while piece := one.recv(65_536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def drip(one: socket.socket, piece: bytes, seconds: float = 5) -> bool:
    """Whether the other side ends the connection while a piece is sent again and again."""
    ends = time.monotonic() + seconds
    one.settimeout(0.02)
    while time.monotonic() < ends:
        try:
            one.sendall(piece)
            if one.recv(65_536) == b"":
                return True
        except TimeoutError:
            pass
        except OSError:
            return True
    return False


WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("begun", [b"", b"\r\n", b"G", b"GET / HTTP/1.1\r\nX: "])
@pytest.mark.parametrize("before", [b"", WHOLE], ids=["first", "second"])
def test_a_head_that_is_not_whole_in_time_ends_the_connection(service: Service, before: bytes, begun: bytes) -> None:
    if before and not begun:
        pytest.skip("an idle connection is kept for the time of keep-alive")
    with service.connect() as one:
        if before:
            one.sendall(before)
            assert one.recv(65_536).startswith(b"HTTP/1.1 200")
        one.sendall(begun)
        assert everything(one)[:12] in (b"", b"HTTP/1.1 408")


@pytest.mark.parametrize("piece", [b"X: y\r\n", b"\r\n", b"a"])
@pytest.mark.parametrize("begun", [b"", WHOLE, WHOLE + b"GET / HTTP/1.1\r\n"])
def test_a_head_that_drips_ends_the_connection(service: Service, begun: bytes, piece: bytes) -> None:
    with service.connect() as one:
        one.sendall(begun)
        if begun:
            assert one.recv(65_536).startswith(b"HTTP/1.1 200")
        elif piece == b"X: y\r\n":
            one.sendall(b"GET / HTTP/1.1\r\n")
        assert drip(one, piece)


def test_a_body_that_nobody_reads_ends_the_connection(service: Service) -> None:
    with service.connect() as one:
        one.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        assert one.recv(65_536).startswith(b"HTTP/1.1 405")
        assert drip(one, b" " * 10)


def test_a_slow_body_that_is_read_may_take_longer(service: Service) -> None:
    with service.connect() as one:
        one.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nConnection: close\r\n\r\n")
        for _ in range(4):
            time.sleep(SOON / 2)  # what is tested is that time passes
            one.sendall(b"x")
        assert everything(one).endswith(b"4")


LARGE: list[tuple[str, bytes]] = [
    ("one header", b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000),
    ("many headers", b"GET / HTTP/1.1\r\n" + b"X: yyyyyyyyyyyyyyyy\r\n" * 10_000),
    ("a path", b"GET /" + b"x" * 200_000),
    ("a whole head", b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n"),
    ("a second head", WHOLE + b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000),
    (
        "headers behind a body",
        b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
        + b"X: yyyyyyyyyyyyyyyy\r\n" * 10_000,
    ),
    (
        "one header behind a body",
        b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
        + b"X: "
        + b"y" * 200_000,
    ),
]


@pytest.mark.parametrize("sent", [row[1] for row in LARGE], ids=[row[0] for row in LARGE])
def test_a_head_that_is_too_large_ends_the_connection(
    service: Service, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60)
    with service.connect() as one, suppress(OSError):
        one.sendall(sent)
        assert b"HTTP/1.1 400" not in everything(one)


def test_a_head_of_the_usual_size_is_taken(service: Service) -> None:
    assert httpx.get(service.url, headers={"X": "x" * 50_000}, trust_env=False).status_code == 200


def test_many_silent_connections_keep_nobody_out(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not count against the limit, and the oldest ones go where there are too many."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60)
    with ExitStack() as stack:
        silent = [stack.enter_context(service.connect()) for _ in range(100)]
        for one in silent:
            one.sendall(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(3):
            assert httpx.get(service.url, timeout=5, trust_env=False).status_code == 200
        assert everything(silent[0]) == b""


def test_idle_connections_keep_nobody_out(service: Service) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            one = stack.enter_context(service.connect())
            one.sendall(WHOLE)
            assert one.recv(65_536).startswith(b"HTTP/1.1 200")
        assert httpx.get(service.url, timeout=5, trust_env=False).status_code == 200


def test_requests_under_way_are_limited(service: Service) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            one = stack.enter_context(service.connect())
            one.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
            assert one.recv(65_536).startswith(b"HTTP/1.1 100")
        assert httpx.get(service.url, timeout=5, trust_env=False).status_code == 503


def test_requests_sent_before_answers_are_limited(service: Service) -> None:
    with service.connect() as one:
        one.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n " + WHOLE * 9 + LAST)
        assert everything(one).count(b"HTTP/1.1 200") == 11
    with service.connect() as one:
        try:
            one.sendall(WHOLE * 3000)
        except OSError:
            return
        assert everything(one).count(b"HTTP/1.1 200") < 100


def test_an_answer_that_nobody_reads_ends_the_connection(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", SOON)
    with service.connect() as one:
        one.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(2 * SOON)  # what is tested is that time passes
        assert len(everything(one)) < 50_000_000


def test_garbage_is_answered_and_ends_the_connection(service: Service) -> None:
    with service.connect() as one:
        one.sendall(b"garbage\r\n\r\n")
        assert everything(one).startswith(b"HTTP/1.1 400")


def test_the_service_is_served_behind_these_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, object] = {}
    monkeypatch.setattr(serve, "app", lambda: None)
    monkeypatch.setattr(uvicorn, "run", lambda app, **settings: told.update(settings))
    serve.serve("127.0.0.1", 0)
    assert (told["http"], told["ws"]) == (GuardedProtocol, "none")
    assert 0 < int(str(told["limit_concurrency"])) <= connections.MAX_CONNECTIONS


# Lines of the log ---------------------------------------------------------------------------------------------------


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("test.repeats")
    yield made
    made.filters.clear()


def test_a_line_that_repeats_is_written_once_a_minute_with_its_number(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    summarise_repeats("test.repeats")
    summarise_repeats("test.repeats")
    assert len(logger.filters) == 1
    for _ in range(5):
        logger.warning("Invalid HTTP request received.")
    logger.warning("another line: %s", "a")
    now[0] += 60
    logger.warning("Invalid HTTP request received.")
    assert [record.getMessage() for record in caplog.records] == [
        "Invalid HTTP request received.",
        "another line: a",
        "Invalid HTTP request received. (and 4 times more since this was last logged)",
    ]


def test_lines_of_many_kinds_are_limited_in_number(logger: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    logger.addFilter(Repeats())
    for n in range(5000):
        logger.warning("kind %d", n)
    for n in range(5000):
        try:
            raise KeyError(n)
        except KeyError:
            logger.exception("failed with %s", n)
    assert len(caplog.records) <= 201
