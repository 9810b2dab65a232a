"""Which bytes pass between a caller and a legacy upstream, which never do, and what an impossible response becomes."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from http_server import Server
from proxies import SECRET, proxy_config, proxy_key, proxy_service, route
from pydantic import ValidationError
from raw_http import RawUpstream, raw_upstream, real_port, sent
from sqlalchemy import Engine

Ask = Callable[..., Awaitable[bytes]]
Serve = Callable[..., Awaitable[Ask]]


@pytest.fixture
async def upstream() -> AsyncIterator[RawUpstream]:
    async with raw_upstream() as made:
        yield made


@pytest.fixture
async def serve(engine: Engine, server: Server, upstream: RawUpstream) -> AsyncIterator[Serve]:
    """Serves ``/stones/{sku}`` with the upstream as its legacy one, at a real port; gives a function that calls it."""
    server.respond_with({"from": "new"})
    async with AsyncExitStack() as stack:

        async def made(**changes: Any) -> Ask:
            legacy = {
                "base_url": upstream.url + "/old",
                "headers": {"X-Api-Key": "ours"},
                "timeout": "3s",
                **changes.pop("legacy", {}),
            }
            settings = route(legacy=legacy, rollout={"by_header": "X-Merchant"}, **changes)
            port = await stack.enter_async_context(
                real_port(proxy_service(engine, proxy_config(server, {"stone": settings})))
            )
            key = proxy_key(engine).encode()

            async def ask(
                *headers: bytes,
                method: bytes = b"GET",
                path: bytes = b"/stones/p1",
                body: bytes = b"",
                login: bytes = b"Authorization: Bearer ",
            ) -> bytes:
                lines = [
                    method + b" /proxy" + path + b" HTTP/1.1",
                    b"Host: api",
                    b"Connection: close",
                    login + key,
                    *headers,
                ]
                if body:
                    lines.append(b"Content-Length: %d" % len(body))
                return await sent(port, b"\r\n".join(lines) + b"\r\n\r\n" + body)

            return ask

        yield made


POST = {"method": "POST", "allow_writes": True, "call": {"method": "POST", "path": "/"}}


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


# Requests -----------------------------------------------------------------------------------------------------------

PASSED = [
    b"Accept: text/html",
    b"Accept-Language: de",
    b"Cookie: a=b",
    b'If-None-Match: "x"',
    b"Range: bytes=0-1",
    b"Prefer: wait=1",
    b"Idempotency-Key: k",
    b"User-Agent: shop/1",
    b"X-Request-Id: r1",
    b"X-Merchant: berlin",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"X-Listed: 1",
]
NEVER = [
    b"X_Api_Key: attacker",
    b"X-API_KEY: attacker",
    b"x-api-key: attacker",
    b"X_Merchant: other",
    b"Accept_Language: x",
    b"X_Forwarded_For: 1.2.3.4",
    b"X-Forwarded-For: 1.2.3.4",
    b"X-Forwarded: x",
    b"X-Original-URI: /admin",
    b"X-Original-URL: /admin",
    b"X-Rewrite-URL: /admin",
    b"X-HTTP-Method: DELETE",
    b"X-HTTP-Method-Override: DELETE",
    b"X_HTTP_Method_Override: DELETE",
    b"X-Method-Override: DELETE",
    b"CF-Connecting-IP: 1.2.3.4",
    b"X-Cluster-Client-IP: 1.2.3.4",
    b"True-Client-IP: 1.2.3.4",
    b"Forwarded: for=1.2.3.4",
    b"Via: 1.1 x",
    b"X-Real-IP: 1.2.3.4",
    b"X-Remote-User: root",
    b"Remote_User: root",
    b"Proxy: http://127.0.0.1:1",
    b"TE: trailers",
    b"Trailer: X",
    b"Upgrade: h2c",
    b"HTTP2-Settings: AAMAAABkAAQAAP__",
    b"Keep-Alive: 5",
    b"Proxy-Authorization: Basic x",
    b"Proxy-Connection: x",
    b"X-Not-Listed: 1",
    b"X.Api.Key: attacker",
    b"Content_Length: 7",
    b"Host_: x",
    b"Accept-Encoding: br",
]


async def test_legacy_gets_the_headers_on_the_list_and_no_others(serve: Serve, upstream: RawUpstream) -> None:
    ask = await serve(legacy={"pass_headers": ["X-Listed"]})
    assert status_of(await ask(*PASSED, *NEVER)) == 200
    expected = [tuple(line.decode().split(": ", 1)) for line in PASSED]
    ours = [("x-api-key", "ours"), ("accept-encoding", "identity"), ("host", upstream.url.removeprefix("http://"))]
    assert sorted(upstream.heads()) == sorted([*((name.lower(), value) for name, value in expected), *ours])


async def test_a_header_with_an_underscore_is_not_that_of_a_route(
    serve: Serve, upstream: RawUpstream, server: Server
) -> None:
    """By a template to the third party, too: of the caller goes out what has exactly the name."""
    ask = await serve(headers=["X-Shop"], call={"path": "/{{ headers['x-shop'] or 'none' }}"})
    await ask(b"X_Shop: evil")
    assert ("x_shop", "evil") not in upstream.heads()
    await ask(b"X-Shop: good")
    assert ("x-shop", "good") in upstream.heads()


async def test_connection_takes_away_what_it_names_but_nothing_of_ours(serve: Serve, upstream: RawUpstream) -> None:
    ask = await serve()
    await ask(b"Connection: x-api-key, accept_language, prefer", b"Accept-Language: de", b"Prefer: x", b"Accept: a/b")
    names = dict(upstream.heads())
    assert (names["x-api-key"], names["accept"], names.keys() & {"prefer", "accept-language"}) == ("ours", "a/b", set())


async def test_the_key_of_this_service_never_reaches_legacy(
    serve: Serve, upstream: RawUpstream, engine: Engine
) -> None:
    ask = await serve(legacy={"headers": {}, "pass_headers": ["X-API-Key"]})
    for login in (b"Authorization: Bearer ", b"authorization:BEARER ", b"X-API-Key: "):
        assert status_of(await ask(login=login)) == 200
        assert b"sync_" not in upstream.requests[-1]
    await ask(b"X-API-Key: " + proxy_key(engine).encode())
    assert b"sync_" not in upstream.requests[-1]


async def test_legacy_knows_its_callers_by_their_login_and_cookies(serve: Serve, upstream: RawUpstream) -> None:
    ask = await serve()
    await ask(b"Authorization: Basic dTpw", b"Cookie: a=1", b"Cookie: b=2", login=b"X-API-Key: ")
    sent = dict(upstream.heads())
    assert (sent["authorization"], sent["cookie"], sent["x-api-key"]) == ("Basic dTpw", "a=1; b=2", "ours")
    ask = await serve(legacy={"headers": {"Authorization": "Basic b3Vycw=="}})
    await ask(b"Authorization: Basic dTpw", login=b"X-API-Key: ")
    assert dict(upstream.heads())["authorization"] == "Basic b3Vycw=="


async def test_bytes_of_header_values_pass_as_they_came_or_are_refused(serve: Serve, upstream: RawUpstream) -> None:
    ask = await serve()
    await ask("Cookie: name=日本".encode())
    assert "Cookie: name=日本".encode().lower() in upstream.requests[-1].lower()
    count = len(upstream.requests)
    response = await ask(b"Cookie: name=\xe9t\xe9")
    assert (status_of(response), len(upstream.requests)) == (400, count)
    assert status_of(await ask(b"X-Not-Listed: \xe9")) == 200


async def test_nothing_is_added_that_the_caller_did_not_send(serve: Serve, upstream: RawUpstream) -> None:
    ask = await serve(**POST)
    await ask(method=b"POST", body=b"\x00\xff")
    names = [name for name, _ in upstream.heads()]
    assert (sorted(names), upstream.body()) == (["accept-encoding", "content-length", "host", "x-api-key"], b"\x00\xff")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/stones/a%2541", 200),
        (b"/stones/50%25", 200),
        (b"/stones/%C3%A4%20b", 200),
        (b"/stones/Inc.", 200),
        (b"/stones/p1?a=%0d%0a&a=2&%zz", 200),
        (b"/stones/%250d%250a", 400),
        (b"/stones/%0d%0aX-A:%201", 404),
        (b"/stones/..%20", 400),
        (b"/stones/%20..", 400),
        (b"/stones/..%09", 400),
        (b"/stones/%20", 400),
        (b"/stones/...", 400),
        (b"/stones/..%E2%80%8B", 400),
        (b"/stones/%EF%BC%8E%EF%BC%8E", 400),
        (b"/stones/%E2%80%A5", 400),
        (b"/stones/%E2%80%A4%E2%80%A4", 400),
        (b"/stones/a%EF%BC%8Fb", 400),
        (b"/stones/a%EF%BC%BCb", 400),
        (b"/stones/a%E2%88%95b", 400),
        (b"/stones/a%E2%81%84b", 400),
        (b"/stones/%E2%84%80", 400),
        (b"/stones/%25c0%25ae%25c0%25ae", 400),
        (b"/stones/%EF%BC%852e", 400),
        (b"/stones/%25EF%25BC%258E%25EF%25BC%258E", 400),
        (b"/stones/%C2%85", 400),
        (b"/stones/%E2%80%A8", 400),
        (b"/stones/%25252e", 400),
        (b"/stones/..;%2e", 400),
        (b"/stones/p1?a=\xe9", 400),
        (b'/stones/p1?a="<\\', 200),
    ],
)
async def test_paths_are_refused_that_another_server_may_read_otherwise(
    serve: Serve, upstream: RawUpstream, path: bytes, expected: int
) -> None:
    ask = await serve()
    assert status_of(await ask(path=path)) == expected
    assert [request.split(b" ")[1] for request in upstream.requests] == ([b"/old" + path] if expected == 200 else [])


@pytest.mark.parametrize(
    ("headers", "changes"),
    [
        ([b"X-Merchant: a", b"X-Merchant: b"], {}),
        ([b"X-Merchant: a", b"x-merchant: b"], {}),
        ([b"Content-Type: a/b", b"Content-Type: c/d"], POST),
        ([b"X-Shop: a", b"X-Shop: b"], {"headers": ["X-Shop"]}),
        ([b"Authorization: Basic x"], {}),
        ([b"Range: bytes=0-1", b"Range: bytes=2-3"], {}),
        ([b"Idempotency-Key: a", b"Idempotency-Key: b"], POST),
    ],
)
async def test_a_header_that_may_be_there_once_is_refused_twice(
    serve: Serve, upstream: RawUpstream, headers: list[bytes], changes: dict[str, Any]
) -> None:
    ask = await serve(**changes)
    response = await ask(*headers, method=changes.get("method", "GET").encode())
    assert (status_of(response), upstream.requests) == (400, [])


async def test_a_get_with_a_body_is_refused_since_some_servers_take_it_for_the_next_request(
    serve: Serve, upstream: RawUpstream
) -> None:
    ask = await serve()
    response = await ask(body=b"GET /admin HTTP/1.1\r\n\r\n")
    assert (status_of(response), upstream.requests) == (400, [])


async def test_the_log_names_once_what_is_withheld(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    ask = await serve()
    for _ in range(2):
        await ask(b"X-Tenant: secret-of-a-caller", b"X_Odd: 1", b"X-Forwarded-For: 1.2.3.4")
    named = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [("x-tenant" in text, "pass_headers" in text) for text in named] == [(True, True)]
    assert "secret-of-a-caller" not in caplog.text


# Responses ----------------------------------------------------------------------------------------------------------


def reply(status: bytes = b"200 OK", *headers: bytes, body: bytes = b"hello") -> bytes:
    lines = [b"HTTP/1.1 " + status, *headers]
    if not any(line.lower().startswith((b"content-length", b"transfer-encoding")) for line in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body


RAW = [
    b"X-Name: \xe6\x97\xa5\xe6\x9c\xac",
    b"X-Latin: \xe9t\xe9",
    b"Set-Cookie: sid=\xff; Path=/",
    b"Set-Cookie: b=2",
    b"X_Theirs: 1",
    b'Content-Disposition: attachment; filename="\xc3\xa4.pdf"',
    b"Location: /\xc3\xa4?x",
    b"X-Empty:",
    b"WWW-Authenticate: Basic",
    b'ETag: W/"x"',
]


async def test_headers_of_a_response_pass_as_the_bytes_that_came(serve: Serve, upstream: RawUpstream) -> None:
    ask = await serve()
    upstream.response = reply(b"299 Odd", *RAW, b"Server: x", b"Date: x", b'Alt-Svc: h3=":443"', b"Keep-Alive: 5")
    head, _, body = (await ask()).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert (status_of(head), body) == (299, b"hello")
    assert {line.split(b":")[0].lower() + b":" + line.split(b":", 1)[1].strip() for line in RAW} <= {
        line.split(b":")[0] + b":" + line.split(b":", 1)[1].strip() for line in lines[1:]
    }
    assert not {b"server", b"alt-svc", b"keep-alive"} & {line.split(b":")[0].lower() for line in lines}


@pytest.mark.parametrize(
    "odd",
    [
        b"X-A: a\x01b",
        b"X-A: a\x7fb",
        b"X-A: a\x00b",
        b"X(A): 1",
        b"X A: 1",
        b": nameless",
        b"X-A: a\x0bb",
        b"X-A: a\rb",
        b"\xc3\xa4: 1",
    ],
)
async def test_headers_that_http_does_not_allow_break_nobody(serve: Serve, upstream: RawUpstream, odd: bytes) -> None:
    ask = await serve()
    upstream.response = reply(b"200 OK", odd)
    response = await ask()
    assert status_of(response) in (200, 502)
    assert odd not in response
    upstream.response = reply()
    assert status_of(await ask()) == 200


IMPOSSIBLE = {
    **{
        f"status {status}": reply(status.encode() + b" X")
        for status in ("999", "600", "099", "000", "1000", "-1", "20", "2 00", "abc", "101")
    },
    "an informational status and nothing else": b"HTTP/1.1 100 Continue\r\n\r\n",
    "no HTTP": b"hello there\r\n\r\n",
    "nothing": b"",
    "a status line alone": b"HTTP/1.1 200 OK\r\n",
    "HTTP/3.7": b"HTTP/3.7 200 OK\r\n\r\nx",
    "fewer bytes than announced": reply(b"200 OK", b"Content-Length: 9"),
    "two lengths": reply(b"200 OK", b"Content-Length: 5", b"Content-Length: 4"),
    "a length that is no number": reply(b"200 OK", b"Content-Length: five"),
    "a negative length": reply(b"200 OK", b"Content-Length: -1"),
    "a length with a sign": reply(b"200 OK", b"Content-Length: +5"),
    "length and chunks": reply(
        b"200 OK", b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n"
    ),
    "an unknown transfer coding": reply(b"200 OK", b"Transfer-Encoding: foo"),
    "a chunk size that is no number": reply(b"200 OK", b"Transfer-Encoding: chunked", body=b"zz\r\nhello\r\n0\r\n\r\n"),
    "a missing last chunk": reply(b"200 OK", b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n"),
    "a chunk that is too short": reply(b"200 OK", b"Transfer-Encoding: chunked", body=b"ff\r\nhello\r\n0\r\n\r\n"),
    "gzip that is none": reply(b"200 OK", b"Content-Encoding: gzip"),
    "gzip that is cut off": reply(b"200 OK", b"Content-Encoding: gzip", body=gzip.compress(b"x" * 999)[:-9]),
    "gzip with more behind it": reply(b"200 OK", b"Content-Encoding: gzip", body=gzip.compress(b"x") + b"y"),
    "a bomb": reply(b"200 OK", b"Content-Encoding: gzip", body=gzip.compress(b"\0" * 9_000_000)),
    "deflate that is none": reply(b"200 OK", b"Content-Encoding: deflate"),
    "an unknown coding": reply(b"200 OK", b"Content-Encoding: foo"),
    "two codings": reply(b"200 OK", b"Content-Encoding: gzip, gzip", body=gzip.compress(gzip.compress(b"x"))),
    "a huge header": reply(b"200 OK", b"X-A: " + b"a" * 100_000),
    "a thousand headers": reply(b"200 OK", *[b"X-%d: a" % number for number in range(1000)]),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
async def test_an_impossible_response_is_a_502_and_the_next_one_is_good(
    serve: Serve, upstream: RawUpstream, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    ask = await serve()
    upstream.response = IMPOSSIBLE[name]
    response = await ask()
    assert (status_of(response), b"application/problem+json" in response) == (502, True)
    assert "Traceback" not in caplog.text
    upstream.response = reply()
    assert status_of(await ask()) == 200


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"gzip", gzip.compress(b"hello")),
        (b"x-gzip", gzip.compress(b"hel") + gzip.compress(b"lo")),
        (b"deflate", zlib.compress(b"hello")),
        (b"deflate", zlib.compress(b"hello")[2:-4]),
        (b"identity", b"hello"),
    ],
    ids=["gzip", "two members", "zlib", "bare deflate", "identity"],
)
async def test_a_compressed_response_is_unpacked_for_callers(
    serve: Serve, upstream: RawUpstream, coding: bytes, body: bytes
) -> None:
    ask = await serve()
    upstream.response = reply(b"200 OK", b"Content-Encoding: " + coding, body=body)
    head, _, content = (await ask()).partition(b"\r\n\r\n")
    assert (content, b"content-encoding" in head.lower()) == (b"hello", False)


async def test_a_coding_that_cannot_be_unpacked_here_passes_as_it_came(serve: Serve, upstream: RawUpstream) -> None:
    ask = await serve()
    upstream.response = reply(b"200 OK", b"Content-Encoding: br", body=b"\x0b\x02\x80hello\x03")
    head, _, content = (await ask()).partition(b"\r\n\r\n")
    assert (content, b"content-encoding: br" in head.lower()) == (b"\x0b\x02\x80hello\x03", True)


async def test_responses_without_a_body_pass(serve: Serve, upstream: RawUpstream) -> None:
    ask = await serve()
    upstream.response = reply(b"200 OK", b"Content-Length: 5", body=b"")
    head = await ask(method=b"HEAD")
    assert (status_of(head), b"content-length: 5" in head.lower()) == (200, True)
    for status in (b"204 No", b"205 Reset", b"304 Not"):
        upstream.response = reply(status, b"ETag: x", body=b"")
        response = await ask()
        assert (status_of(response), response.partition(b"\r\n\r\n")[2]) == (int(status[:3]), b"")


async def test_a_body_where_none_may_be_is_not_read_as_the_response_to_the_next_caller(
    serve: Serve, upstream: RawUpstream
) -> None:
    ask = await serve()
    upstream.keeps_open = True
    stray = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nSTRAY"
    for method, status in ((b"HEAD", b"200 OK"), (b"GET", b"204 No"), (b"GET", b"304 Not")):
        upstream.response = reply(status, body=stray).replace(b"Connection: close", b"X-A: b")
        await ask(method=method)
        upstream.response = reply().replace(b"Connection: close", b"X-A: b")
        assert b"STRAY" not in await ask()


async def test_no_cookie_of_one_caller_goes_out_with_the_request_of_another(
    serve: Serve, upstream: RawUpstream, engine: Engine, server: Server
) -> None:
    """To legacy and to the third party. By a host name: cookies of bare addresses are not kept anyway."""
    upstream.response = reply(b"200 OK", b"Set-Cookie: sid=of-the-first; Path=/", b"Set-Cookie: n=\xe6\x97\xa5")
    named = upstream.url.replace("127.0.0.1", "localhost")
    ask = await serve(legacy={"base_url": named})
    assert b"of-the-first" in await ask()
    for _ in range(2):
        await ask(b"Cookie: mine=1")
        assert [value for name, value in upstream.heads() if name == "cookie"] == ["mine=1"]
    settings = {"stone": route()}
    config = proxy_config(server, settings, system={"base_url": named})
    upstream.response = reply(
        b"200 OK",
        b"Set-Cookie: sid=of-the-first; Path=/",
        b"Set-Cookie: n=\xe6\x97\xa5",
        b"Content-Type: application/json",
        body=b"{}",
    )
    async with real_port(proxy_service(engine, config)) as port:
        request = (
            b"GET /proxy/stones/p1 HTTP/1.1\r\nHost: api\r\nConnection: close\r\nCookie: mine=1\r\n"
            b"Authorization: Bearer " + proxy_key(engine).encode() + b"\r\n\r\n"
        )
        for _ in range(3):
            response = await sent(port, request)
            assert (status_of(response), b"of-the-first" in response) == (200, False)
            assert "cookie" not in dict(upstream.heads())
            assert dict(upstream.heads())["x-api-key"] == SECRET


# The configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("legacy", "complaint"),
    [
        ({"pass_headers": ["X_Tenant"]}, "pass_headers"),
        ({"pass_headers": ["Connection"]}, "never passed on"),
        ({"pass_headers": ["Transfer-Encoding"]}, "never passed on"),
        ({"pass_headers": ["Host"]}, "never passed on"),
        ({"headers": {"X_Key": "k"}, "pass_headers": ["X-Key"]}, "set by legacy.headers"),
        ({"headers": {"Content_Length": "5"}}, "set by the service itself"),
        ({"headers": {"a b": "5"}}, "headers"),
        ({"base_url": "http://u:p@127.0.0.1:1"}, "legacy.headers"),
    ],
)
def test_what_could_break_a_request_is_refused_at_load(server: Server, legacy: dict[str, Any], complaint: str) -> None:
    settings = route(legacy={"base_url": "http://127.0.0.1:1", **legacy}, rollout={"by_part": "sku"})
    with pytest.raises(ValidationError, match=complaint):
        proxy_config(server, {"stone": settings})


async def test_an_error_may_have_a_status_that_http_does_not_name(serve: Serve, engine: Engine, server: Server) -> None:
    server.respond_with({}, 400)
    settings = route(errors=[{"when": "status == `400`", "status": 499, "detail": "Not sold."}])
    async with real_port(proxy_service(engine, proxy_config(server, {"stone": settings}))) as port:
        response = await sent(
            port,
            b"GET /proxy/stones/p1 HTTP/1.1\r\nHost: api\r\nConnection: close\r\n"
            b"X-API-Key: " + proxy_key(engine).encode() + b"\r\n\r\n",
        )
    assert (status_of(response), b"Not sold." in response) == (499, True)
