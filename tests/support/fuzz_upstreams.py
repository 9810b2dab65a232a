"""An upstream that responds oddly: a store that keeps what was written, behind bytes made from a seed and a number.

The same port is the third party (``/erp``), a source system (``/shop``) and a legacy system (``/legacy``). A write that
gets a 2xx was done, one that gets a 4xx was not; of any other, a coin decides.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

GATED: set[str] = set()
"""Kinds of responses that are left out, since a fault of the product is known and not fixed yet: kinds of bodies,
``non-ascii`` headers, ``unstorable`` texts (NUL, lone surrogates), a ``status`` outside 200 and 599, and requests of
callers with ``websocket``."""

STATUS_LINES = [
    *(
        b"HTTP/1.1 %d X" % status
        for status in (
            200,
            200,
            200,
            201,
            202,
            203,
            204,
            205,
            206,
            226,
            299,
            300,
            301,
            302,
            304,
            307,
            308,
            400,
            401,
            402,
            403,
            404,
            405,
            408,
            409,
            410,
            412,
            413,
            415,
            418,
            422,
            423,
            424,
            425,
            428,
            429,
            431,
            451,
            499,
            500,
            501,
            502,
            503,
            504,
            507,
            511,
            520,
            599,
            600,
            999,
        )
    ),
    b"HTTP/1.1 099 X",
    b"HTTP/1.1 000 X",
    b"HTTP/1.1 101 X",
    b"HTTP/1.1 100 Continue",
    b"HTTP/1.1 103 Early",
    b"HTTP/1.1 200",
    b"HTTP/1.1  200 X",
    b"HTTP/1.1 2000 X",
    b"HTTP/1.1 abc X",
    b"HTTP/1.0 200 OK",
    b"HTTP/2 200 OK",
    b"HTTP/0.9 200 OK",
    b"http/1.1 200 ok",
    b"ICY 200 OK",
    b"HTTP/1.1 200 \xff\xfe",
    b"HTTP/1.1 200 " + b"x" * 9000,
    b"<html>",
    b"",
    b"\x00\x00",
    b"+OK",
    b"SSH-2.0-x",
    b"HTTP/1.1 -200 OK",
]
HEADERS = [
    b"Set-Cookie: sid=\xe6\x97\xa5\xe6\x9c\xac; Path=/",
    b"Set-Cookie: a=b; Domain=.; Path=/",
    b"Set-Cookie: \xff",
    b"Set-Cookie: " + b"c" * 8000,
    b"Set-Cookie: a=b\x01",
    b"Set-Cookie: =; =;;",
    b"X-Name: \xe6\x97\xa5",
    b"X-Name: \xe9",
    b"X-Name: a\x01b",
    b"X-Name: a\x7f",
    b"X Name: 1",
    b": 1",
    b"X(N): 1",
    b"\xff: 1",
    b"X-Big: " + b"a" * 20_000,
    b"Content-Type: text/html; charset=\xff",
    b"Content-Type: application/json; charset=utf-7",
    b"Content-Type: \x01",
    b"Content-Type: application/problem+json",
    b"Content-Encoding: foo",
    b"Content-Encoding: gzip, gzip, gzip",
    b"Content-Encoding: br",
    b"Content-Encoding: \xff",
    b"Content-Encoding: gzip",
    b"Content-Encoding: deflate",
    b"Retry-After: soon",
    b"Retry-After: 1e999",
    b"Retry-After: -5",
    b"Retry-After: nan",
    b"Retry-After: 0",
    b"Retry-After: \xd9\xa1",
    b"Retry-After: Thu, 99 Foo 9999 99:99:99 GMT",
    b"RateLimit: limit=x;w=\xff",
    b"RateLimit-Reset: -1",
    b"X-RateLimit-Reset: 99999999999999999999",
    b"Location: http://127.0.0.1:1/",
    b"Location: http://u:p@[::1",
    b"Location: \xff",
    b"Location: //x\\y",
    b"Link: " + b"<" * 4000,
    b"Link: <http://u:p@127.0.0.1/>; rel=next",
    b"Date: never",
    b"Date: Thu, 01 Jan 1970 00:00:00 GMT",
    b"ETag: \xff",
    b"Connection: x-served-from, content-length",
    b"Connection: \xff",
    b"Trailer: X",
    b"Upgrade: h2c",
    b'Alt-Svc: h3=":1"',
    b"Age: x",
    b"Vary: *",
    b"WWW-Authenticate: Digest \xff",
    b"Keep-Alive: timeout=x",
    b"X-Served-From: archive",
    b"Content-Length: 5",
    b"Content-Length: x",
    b"Content-Length: 1, 1",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Content-Range: bytes x",
]


_ODD_DOCUMENTS = [
    b"null",
    b"true",
    b"0",
    b'""',
    b"[]",
    b"{}",
    b'{"id": null}',
    b'{"id": {"a": 1}}',
    b'{"id": [1]}',
    b'{"id": 1.5}',
    b'{"id": ""}',
    b'{"id": true}',
    b'{"error": "\\u0000"}',
    b'{"items": null}',
    b'{"items": 7}',
    b'{"items": [null]}',
    b'{"items": ["x"]}',
    b'"\\ud800"',
    b'{"rows": {}}',
]


def _html_comments(count: int) -> bytes:
    return b"<!-- -->" * count + b"x"


def _body(random: Random, good: bytes) -> tuple[bytes, list[bytes]]:
    """A body, and the headers that belong to it."""
    kinds = [
        "good",
        "good",
        "empty",
        "html",
        "comments",
        "doctype",
        "bytes",
        "json",
        "deep",
        "numbers",
        "nan",
        "twice",
        "surrogate",
        "bom",
        "utf16",
        "truncated",
        "gzip",
        "gzip cut",
        "bomb",
        "big bomb",
        "deflate",
        "large",
        "text",
    ]
    kind = random.choice([each for each in kinds if each not in GATED])
    match kind:
        case "empty":
            return b"", []
        case "html":
            return b"<!DOCTYPE html><title>Maintenance</title>" + b"<p>" * random.choice([1, 10_000]), []
        case "comments":
            return _html_comments(random.choice([5, 18, 26, 30, 60, 400, 20_000])), []
        case "doctype":
            return b"<!doctype html>" + b"<!--" * random.choice([10, 5000, 50_000]), []
        case "bytes":
            return random.randbytes(random.randrange(1, 2000)), []
        case "json":
            return random.choice(_ODD_DOCUMENTS), []
        case "deep":
            return b"[" * random.choice([100, 10_000, 500_000]), []
        case "numbers":
            return b'{"total": ' + b"9" * random.choice([30, 5000]) + b"}", []
        case "nan":
            return random.choice([b"NaN", b'{"id": Infinity}', b"1e999999", b"-", b"01"]), []
        case "twice":
            return b'{"total": "1", "total": "2"}', []
        case "surrogate":
            return b'{"note": "\\ud83d", "name": "\\udc00"}', []
        case "bom":
            return b"\xef\xbb\xbf" + good, []
        case "utf16":
            return good.decode().encode("utf-16"), []
        case "truncated":
            return good[: len(good) // 2], []
        case "gzip":
            return gzip.compress(good), [b"Content-Encoding: gzip"]
        case "gzip cut":
            return gzip.compress(good)[:-6], [b"Content-Encoding: gzip"]
        case "bomb":
            return _BOMB, [b"Content-Encoding: gzip"]
        case "big bomb":
            return _big_bomb(), [b"Content-Encoding: gzip"]
        case "deflate":
            return zlib.compress(good)[random.choice([0, 2]) :], [b"Content-Encoding: deflate"]
        case "large":
            return b'{"x": "' + b"x" * 300_000 + b'"}', []
        case "text":
            return random.choice(
                [b"OK", b"error", b"<error/>", b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"]
            ), []
    return good, [b"Content-Type: application/json"]


_BOMB = gzip.compress(b"0" * 20_000_000)
_big: list[bytes] = []


def _big_bomb() -> bytes:
    """Unpacks to more than any limit."""
    if not _big:
        engine = zlib.compressobj(9, wbits=31)
        _big.append(b"".join(engine.compress(b"0" * 10_000_000) for _ in range(12)) + engine.flush())
    return _big[0]


@dataclass(frozen=True)
class Odd:
    """A response's bytes and how they are sent; ``says_done``: whether a write was done, None: it leaves that open."""

    data: bytes
    way: str
    says_done: bool | None


def odd_response(seed: int, number: int, good: bytes) -> Odd:
    """Makes the response of this number; ``good`` is the body that would be right."""
    random = Random(f"upstream {seed} {number}")
    line = random.choice(STATUS_LINES)
    if "status" in GATED and re.match(rb"HTTP/1.1 (000|099|101|600|999)", line):
        line = b"HTTP/1.1 500 X"
    body, headers = _body(random, good)
    if "unstorable" in GATED:
        body = re.sub(rb"\\u(0000|d[89a-f]..)", b"", body.replace(b"\0", b"0"))
    headers += [
        each
        for each in random.sample(HEADERS, random.choice([0, 0, 1, 1, 2, 4]))
        if each.isascii() or "non-ascii" not in GATED
    ]
    match random.randrange(10):
        case 0:
            headers.append(b"Content-Length: %d" % (len(body) + 7))
        case 1:
            size = random.choice([1, 100, 5000])
            pieces = [body[at : at + size] for at in range(0, min(len(body), 50 * size), size)]
            body = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
            body += random.choice([b"0\r\n\r\n", b"0\r\nX: \xff\r\n\r\n", b"", b"zz\r\n", b"-1\r\n\r\n"])
            headers.append(b"Transfer-Encoding: chunked")
        case 2:
            headers.append(b"Connection: close")
        case _:
            headers.append(b"Content-Length: %d" % len(body))
    if random.random() < 0.02:
        headers += [b"X-%d: y" % index for index in range(300)]
    separator = b"\n" if random.random() < 0.03 else b"\r\n"
    data = separator.join([line, *headers]) + separator * 2 + body
    if random.random() < 0.04:
        data = data[: random.randrange(len(data) + 1)]
    way = random.choices(
        ["send", "reset", "nothing", "drip", "hang", "early hints", "twice"], [90, 2, 2, 0.5, 0.5, 2, 2]
    )[0]
    if way == "early hints":
        data = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" * random.choice([1, 50]) + data
    if way == "twice":
        data *= 2
    return Odd(data, way, {b"2": True, b"4": False}.get(line.partition(b" ")[2].strip()[:1]))


def good_response(body: bytes, status: int = 200) -> bytes:
    head = b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


@dataclass
class OddUpstream:
    """``is_odd`` switches between odd and good responses; ``store`` is what the third party holds, by id."""

    seed: int
    is_odd: bool = False
    url: str = ""
    counts: dict[str, int] = field(default_factory=lambda: {"erp": 0, "shop": 0, "legacy": 0})
    """How many odd responses were given, by system."""
    store: dict[str, dict[str, Any]] = field(default_factory=dict)
    creates: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    """The rows of the source system: the version by key."""
    cookies: list[str] = field(default_factory=list)
    """Cookie headers that came with requests; no caller of the fuzz sends one."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (
            ConnectionError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            TimeoutError,
            asyncio.CancelledError,
        ):  # the last at the end of the test, which no traceback needs to tell
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target, _ = head.split(" ", 2)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}
        if "cookie" in headers:
            self.cookies.append(headers["cookie"])
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        _, system, *path = urlsplit(target).path.split("/")
        query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        if not self.is_odd or path[-1:] == ["good"]:
            status, document = self._respond(system, method, [unquote(piece) for piece in path], query, body, done=True)
            content = good_response(json.dumps(document).encode(), status)
            writer.write(content.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else content)
            await writer.drain()
            return True
        self.counts[system] += 1
        number = sum(self.counts.values())
        # What a write returns names the id that it got, so the body is made after the write.
        made = odd_response(self.seed, number, b"{}")
        done = Random(f"done {self.seed} {number}").random() < 0.5 if made.says_done is None else made.says_done
        _, document = self._respond(system, method, [unquote(piece) for piece in path], query, body, done=done)
        await self._send(writer, odd_response(self.seed, number, json.dumps(document).encode()))
        return False

    async def _send(self, writer: asyncio.StreamWriter, odd: Odd) -> None:
        match odd.way:
            case "reset":
                writer.write(odd.data[:20])
                writer.transport.abort()
            case "nothing":
                return
            case "hang":
                writer.write(odd.data[:30])
                await asyncio.sleep(3)
            case "drip":
                for at in range(min(len(odd.data), 30)):
                    writer.write(odd.data[at : at + 1])
                    await asyncio.sleep(0.1)
            case _:
                writer.write(odd.data)
                await writer.drain()

    def _respond(
        self, system: str, method: str, path: list[str], query: dict[str, str], body: bytes, *, done: bool
    ) -> tuple[int, Any]:
        if system == "shop":
            return self._row(path, query)
        if system == "legacy" or path[:1] != ["items"]:
            return 200, {"from": system}
        if method == "POST":
            return self._create(json.loads(body), done=done)
        if path == ["items"]:
            found = [
                {"id": each, **record}
                for each, record in self.store.items()
                if all(record.get(name) == value for name, value in query.items())
            ]
            return 200, {"items": found}
        number = path[1]
        if number not in self.store:
            return 404, {"error": "no such item"}
        record = {"id": number, **self.store[number]}
        if method == "PUT":
            if done:
                self.store[number] = json.loads(body)
            return 200, {"id": number, **json.loads(body)}
        if method == "DELETE" and done:
            del self.store[number]
        return 200, record

    def _create(self, record: dict[str, Any], *, done: bool) -> tuple[int, Any]:
        self.creates += 1
        number = f"00000000-0000-4000-8000-{self.creates:012d}"
        if done:
            self.store[number] = record
        return 201, {"id": number, **record}

    def _row(self, path: list[str], query: dict[str, str]) -> tuple[int, Any]:
        def row(key: str) -> dict[str, Any]:
            return {"key": key, "name": f"n{self.versions[key]}", "store": "A", "v": self.versions[key]}

        if path == ["rows"]:
            return 200, {"rows": [row(key) for key in self.versions]}
        key = path[-1]
        return (200, row(key)) if key in self.versions else (404, {"error": "no such row"})


@asynccontextmanager
async def odd_upstream(seed: int) -> AsyncIterator[OddUpstream]:
    upstream = OddUpstream(seed)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=2**20)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
