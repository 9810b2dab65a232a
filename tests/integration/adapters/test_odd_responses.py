"""One call, one failure: whatever happens while a call is built, sent or read is one classed failure of that call."""

from __future__ import annotations

import asyncio
import gzip
import resource
import traceback
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fakes import two_part_config
from http_server import Server
from record_store import THEIRS
from starlette.requests import Request as Incoming
from starlette.responses import Response

from sync_orchestrator.adapters.factory import build_third_parties
from sync_orchestrator.adapters.http import client as http
from sync_orchestrator.adapters.http import transport
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.origins import is_below
from sync_orchestrator.adapters.http.prepared_calls import Outgoing
from sync_orchestrator.adapters.http.response_budget import ResponseBudget
from sync_orchestrator.adapters.http.unpacking import ResponseTooLarge, ResponseUnreadable, Unpacker
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import ListCallSettings, RequestSettings
from sync_orchestrator.core.ports import Item
from sync_orchestrator.errors import CallFailed, Failure

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

WRITE = RequestSettings(method="POST", path="/items")


async def failure_of(work: Awaitable[Any]) -> CallFailed:
    with pytest.raises(CallFailed) as raised:
        await work
    return raised.value


async def replied(reply: bytes, *, write: bool = True, **settings: Any) -> Any:
    """One call to a server that replies with these bytes and closes the connection: its response, or its failure."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = HttpClient(HttpSettings(base_url=f"http://127.0.0.1:{port}", timeout=5, **settings))
        try:
            return await client.send(WRITE, {}, write=write)
        except CallFailed as failure:
            return failure
        finally:
            await client.close()


GOOD = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n"


@pytest.mark.parametrize(
    "header",
    [
        "Set-Cookie: sid=日本; Path=/".encode(),
        "X-Name: 日本".encode(),
        b"X-Name: \xff\xfe",
        b"X-Name:",
        b"X-Name: a\tb",
        "Set-Cookie: a=b; Path=\u00e9".encode("latin-1"),
        b"Set-Cookie: =; =",
        b"Set-Cookie: a=b; Max-Age=" + b"9" * 400,
        b"Retry-After: " + b"9" * 4000,
        b"Date: yesterday",
        b'RateLimit: "\\',
        b"Link: <<<>>>;;;rel=;",
        b"ETag: \xe4",
        b"Content-Type: \xff/\xff; charset=\xff",
        b"Content-Type: text/html; charset=no-such-charset",
        b"Location: http://[::1",
        b"Content-Encoding: identity",
        b"Content-Encoding:",
        b"Server: \x80",
    ],
)
async def test_an_odd_header_does_not_hide_what_was_done(header: bytes) -> None:
    answer = await replied(GOOD + header + b"\r\n\r\n{}")
    assert (answer.status, answer.body) == (201, {})


@pytest.mark.parametrize(
    "header",
    [
        b"X-\xff: a",
        b"X Y: a",
        b"X-A: a\x00b",
        b": a",
        b"no colon",
        b"Content-Length: 3",
        b"Transfer-Encoding: chunked",
        b"Content-Length: -1",
        b"X-A: " + b"a" * 70_000,
        b"Content-Encoding: br",
        b"Content-Encoding: \xff",
        b"Content-Encoding: gzip, gzip",
    ],
)
async def test_a_header_that_cannot_be_read_leaves_the_outcome_unknown(header: bytes) -> None:
    """Or does no harm; what the library makes of it is its own."""
    answer = await replied(GOOD + header + b"\r\n\r\n{}")
    if isinstance(answer, CallFailed):
        assert (answer.kind, answer.unknown) == (Failure.TRANSIENT, True)
    else:
        assert answer.status == 201


@pytest.mark.parametrize("status", [b"000", b"099", b"1", b"600", b"999", b"20", b"-1", b"abc", b"", b"\xff"])
async def test_an_impossible_status_leaves_the_outcome_unknown(status: bytes) -> None:
    answer = await replied(b"HTTP/1.1 " + status + b" Odd\r\nContent-Length: 2\r\n\r\n{}")
    assert isinstance(answer, CallFailed)
    assert answer.unknown


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b"\x00",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"1" * 100_000,
        b"NaN",
        b"-",
        b'"\\ud800"',
        b'{"a":1,"a":2}',
        b"1e999999999",
        b"\xef\xbb\xbf{}",
        b"{}{}",
        b"<" * 100_000,
    ],
)
@pytest.mark.parametrize("status", [200, 400, 500])
async def test_an_odd_body_is_a_response_or_a_classed_failure(status: int, body: bytes) -> None:
    answer = await replied(
        f"HTTP/1.1 {status} Odd\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body,
        outcomes=[
            {"when": "body.a == 'x'", "means": "missing"},
            {"when": "starts_with(text, 'never')", "means": "missing"},
        ],
    )
    assert answer.status == status
    if isinstance(answer, CallFailed):
        assert answer.unknown is (status == 500 or body.startswith(b"<"))  # a page may be a gateway's


async def test_no_cookie_goes_with_the_next_call(server: Server) -> None:
    seen: list[str | None] = []

    async def handler(request: Incoming) -> Response:
        seen.append(request.headers.get("cookie"))
        return Response("{}", headers={"Set-Cookie": "sid=1; Path=/"})

    server.handler = handler
    client = HttpClient(HttpSettings(base_url=server.url))
    for _ in range(2):
        await client.send(WRITE, {}, write=True)
    await client.close()
    assert seen == [None, None]


# What cannot be built was not sent.


class _Signed(Exception):
    pass


@pytest.mark.parametrize(
    "error", [ValueError("no"), UnicodeEncodeError("ascii", "ä", 0, 1, "no"), KeyError("x"), _Signed()]
)
async def test_a_call_that_cannot_be_signed_was_not_made(server: Server, error: Exception) -> None:
    def sign(call: Outgoing) -> dict[str, str]:
        raise error

    client = HttpClient(HttpSettings(base_url=server.url))
    prepared = client.prepare_request(WRITE, {})
    failure = await failure_of(client.send_prepared(replace(prepared, sign=sign), write=True))
    await client.close()
    assert (failure.kind, failure.unknown, server.seen) == (Failure.PERMANENT, False, [])


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        UnicodeError("no"),
        KeyError("x"),
        RuntimeError("no"),
        EOFError(),
        httpx.ReadError("no"),
        OSError("no"),
        AttributeError("no"),
    ],
)
async def test_anything_raised_while_a_response_is_read_leaves_the_outcome_unknown(
    server: Server, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(answer: Any) -> dict[str, str]:
        raise error

    server.respond_with({})
    monkeypatch.setattr(transport, "_decode_headers", fail)
    client = HttpClient(HttpSettings(base_url=server.url))
    failure = await failure_of(client.send(WRITE, {}, write=True))
    await client.close()
    assert (failure.kind, failure.unknown) == (Failure.TRANSIENT, True)


async def test_anything_raised_while_a_response_is_understood_leaves_the_outcome_unknown(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ArithmeticError("no")

    server.respond_with({})
    monkeypatch.setattr(http, "failure_of", fail)
    client = HttpClient(HttpSettings(base_url=server.url))
    failure = await failure_of(client.send(WRITE, {}, write=True))
    await client.close()
    assert (failure.kind, failure.unknown, failure.status) == (Failure.TRANSIENT, True, 200)


# How large a response may be.


def gz(plain: bytes) -> bytes:
    """The same bytes each time."""
    return gzip.compress(plain, mtime=0)


def fed(unpacker: Unpacker, block: bytes) -> list[int]:
    return list(unpacker.unpack_block(block))


async def test_responses_share_a_budget_and_one_may_exceed_it() -> None:
    """Two large ones are read one after the other; nobody waits for ever, and small ones do not wait."""
    budget = ResponseBudget(1_000_000)
    order: list[str] = []

    async def read(name: str, size: int) -> None:
        with budget.open_share() as share:
            for part in range(1, 11):
                await share.grow_to(size * part // 10)
                await asyncio.sleep(0)
            order.append(name)

    async with asyncio.timeout(10):
        await asyncio.gather(read("a", 3_000_000), read("b", 3_000_000), read("c", 2_000_000), read("small", 60_000))
    assert sorted(order) == ["a", "b", "c", "small"]
    assert order.index("small") < 3
    assert (budget.used_bytes, budget.exceeding) == (0, None)


async def test_a_response_that_is_given_up_gives_its_budget_back() -> None:
    budget = ResponseBudget(1_000_000)
    with budget.open_share() as first:
        await first.grow_to(2_000_000)
        with pytest.raises(TimeoutError), budget.open_share() as second:
            async with asyncio.timeout(0.01):
                await second.grow_to(2_000_000)
    with budget.open_share() as third:
        await third.grow_to(2_000_000)
    assert (budget.used_bytes, budget.exceeding) == (0, None)


def bomb(coding: str, size: int) -> bytes:
    packed = gzip.compress(bytes(size)) if coding == "gzip" else zlib.compress(bytes(size))
    return (f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(packed)}\r\n\r\n").encode() + packed


@pytest.mark.slow
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_response_that_unpacks_to_more_than_it_may_is_a_failure(coding: str) -> None:
    """Half a gigabyte in half a megabyte: neither the memory nor the time of it is spent."""
    reply = bomb(coding, 500_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = await replied(reply, max_response_bytes=1_000_000)
    assert isinstance(answer, CallFailed)
    assert answer.unknown
    assert "more than 1000000 bytes" in answer.detail
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


async def test_a_long_response_is_not_read_to_its_end() -> None:
    answer = await replied(
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + bytes(200_000), max_response_bytes=100_000
    )
    assert isinstance(answer, CallFailed)
    assert "more than 100000 bytes" in answer.detail


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("", b"text"),
        ("identity", b"text"),
        ("gzip", gz(b"text")),
        ("GZIP", gz(b"text")),
        ("x-gzip", gz(b"text")),
        ("gzip", gz(b"te") + gz(b"xt")),
        ("gzip", gz(b"text") + bytes(20)),
        ("deflate", zlib.compress(b"text")),
        ("deflate", zlib.compress(b"text")[2:-4]),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_is_packed_is_unpacked(coding: str, packed: bytes, size: int) -> None:
    if coding == "deflate" and size == 1:
        size = 2  # how it was packed shows in its first two bytes
    unpacker = Unpacker(coding, 4)
    for start in range(0, len(packed), size):
        fed(unpacker, packed[start : start + size])
    assert unpacker.finish_body() == b"text"


def test_what_is_packed_badly_is_refused() -> None:
    with pytest.raises(ResponseTooLarge):
        fed(Unpacker("", 3), b"text")
    with pytest.raises(ResponseTooLarge):
        fed(Unpacker("gzip", 3), gz(b"text"))
    for coding, packed in (("gzip", b"text"), ("br", b"text"), ("deflate", b"\xff\xff\xff\xff")):
        with pytest.raises(ResponseUnreadable):
            fed(Unpacker(coding, 100), packed)
    cut = Unpacker("gzip", 100)
    fed(cut, gz(b"text")[:-3])
    with pytest.raises(ResponseUnreadable, match="ends early"):
        cut.finish_body()


# Where a next page may be.


@pytest.mark.parametrize(
    ("path", "base", "below"),
    [
        ("/api/items?page=2", "/api", True),
        ("/api", "/api", True),
        ("/api/", "/api/", True),
        ("/api?page=2", "/api", True),
        ("/api/items", "/api/", True),
        ("/items", "/", True),
        ("/items", "", True),
        ("/api/a%2Fb", "/api", True),
        ("/apis", "/api", False),
        ("/admin", "/api", False),
        ("/API/x", "/api", False),
        ("/api/../admin", "/api", False),
        ("/api/%2e%2e/admin", "/api", False),
        ("/api/%252e%252e/admin", "/api", False),
        ("/api/..%2fadmin", "/api", False),
        ("/api/..\\admin", "/api", False),
        ("/api/..%5cadmin", "/api", False),
        ("//evil/api", "/api", False),
        ("/api/x?next=/../..", "/api", True),
        ("/api/./x", "/api", False),
    ],
)
def test_a_path_below_another(path: str, base: str, below: bool) -> None:
    assert is_below(path.encode(), base.encode()) is below


@pytest.mark.parametrize(
    ("link", "settings", "why"),
    [
        ("/api/items?p=2", {}, None),
        ("{url}/api/items?p=2", {}, None),
        ("items?p=2", {}, None),
        ("/admin?p=2", {}, "not below base_url"),
        ("/api/%2e%2e/admin", {}, "not below base_url"),
        ("{url}/admin?p=2", {"next_origins": {"{url}": "follow"}}, None),
        ("http://other.test/admin", {"next_origins": {"http://other.test": "rewrite"}}, "not below base_url"),
        ("http://other.test/api/items", {"next_origins": {"http://other.test": "rewrite"}}, None),
        ("http://u:p@{host}/api/items", {}, "user name or a password"),
        ("http://u@{host}/api/items", {}, "user name"),
        ("http://u:p@{host}/api/items", {"next_origins": {"{url}": "follow"}}, "user name or a password"),
    ],
)
async def test_a_next_page_is_requested_below_base_url_only(
    server: Server, link: str, settings: dict[str, Any], why: str | None
) -> None:
    def here(text: str) -> str:
        return text.format(url=server.url, host=server.url.removeprefix("http://"))

    server.respond_with([])
    client = HttpClient(
        HttpSettings.model_validate(
            {
                "base_url": f"{server.url}/api",
                "headers": {"Authorization": "Basic eDp5"},
                **{name: {here(origin): way for origin, way in value.items()} for name, value in settings.items()},
            }
        )
    )
    listing = ListCallSettings.model_validate({"path": "/items", "paging": "link"})
    work = client.follow_address(str(httpx.URL(f"{server.url}/api/items").join(here(link))), listing, {})
    if why is None:
        await work
        assert len(server.seen) == 1
    else:
        failure = await failure_of(work)
        assert why in failure.detail
        assert (failure.about_system, server.seen) == (True, [])
    await client.close()


async def test_a_failure_keeps_no_response(server: Server) -> None:
    """A batch keeps its failures until it is settled; the responses would fill the memory."""
    server.respond_with({"error": "x" * 1000}, 400)
    config = two_part_config(system={"base_url": server.url}, entity={"third_party": THEIRS})
    third_party = build_third_parties(config, {})["item"]
    failure = await failure_of(third_party.create(Item("k1", "A", {"code": "k1"}, None, "thing/k1")))
    await third_party.close()
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(failure.__traceback__)]
    assert not [name for name in files if name.endswith(("http.py", "sending.py", "wire.py"))]
    assert failure.__context__ is None
