"""Requests of callers that nobody would write by hand, each made from a seed and its number."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import quote

import fuzz_upstreams
from fuzz_service import post


@dataclass(frozen=True)
class Case:
    """A request's bytes; ``half_close`` where the server could wait for more."""

    request: bytes
    half_close: bool = False


METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "", "G\x00T"]
PATHS = [
    "/v1/events",
    "/v1/sources/lab/events",
    "/v1/sources/shop/events",
    "/v1/sources/%00/events",
    "/v1/records/item/",
    "/v1/events/shop/",
    "/v1/rollouts",
    "/v1/rollouts/old",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/proxy/stones/",
    "/proxy/orders/",
    "/proxy/old/",
    "/",
    "/v1",
    "//v1/events",
    "/v1/events/",
    "*",
    "http://x/healthz",
]
PIECES = [
    "p1",
    "..",
    "%2e%2e",
    "%00",
    "%ff",
    "%zz",
    "a%2fb",
    "ä",
    "日本",
    "%F0%9F%98%80",
    "a;b",
    "x" * 9000,
    "%250d%250a",
    "..%20",
    "%EF%BC%8E%EF%BC%8E",
    "",
    "{{7*7}}",
    "${HOME}",
    "'\"<>",
    "a b",
    "\\",
    "%c0%af",
    "-1",
    "1e400",
    "null",
]
QUERIES = [
    "",
    "?",
    "?partial=true",
    "?partial=maybe",
    "?partial=true&partial=false",
    "?lang=de",
    "?lang=%ff",
    "?a=%zz",
    "?limit=-1",
    "?limit=1e9",
    "?" + "a=1&" * 300,
    "?lang=\xe9",
    "?x=%00",
    "?;",
    "?lang[]=1",
    "#x",
]
HEADERS = [
    b"Content-Type: application/json",
    b"Content-Type: application/cloudevents+json; charset=utf-16",
    b"Content-Type: \xff",
    b"Content-Type:",
    b"Content-Encoding: gzip",
    b"Content-Encoding: deflate, gzip",
    b"Content-Encoding: br",
    b"ce-specversion: 1.0",
    b"ce-id: b1",
    b"ce-source: shop",
    b"ce-type: item.updated",
    b"ce-subject: %ff%00",
    b"ce-time: 9999-99-99T99:99:99Z",
    b"ce-data: 1",
    b"ce-version: 1e99",
    b"X-Shop: a",
    b"X-Shop: b",
    b"X_Shop: c",
    b"Cookie: \xe6\x97\xa5",
    b"Cookie: a=\xff",
    b"Authorization: Bearer ",
    b"Authorization: Basic \xff",
    b"X-API-Key: sync_000000000000_x",
    b"X-API-Key: " + b"k" * 20_000,
    b"webhook-signature: v1,x",
    b"webhook-id: \xff",
    b"webhook-timestamp: nan",
    b"traceparent: 00-x-y-z",
    b"Expect: 100-continue",
    b"Upgrade: websocket",
    b"Connection: upgrade",
    b"Connection: x-api-key",
    b"Range: bytes=0-",
    b"X-HTTP-Method-Override: DELETE",
    b"Host: evil",
    b"X-Forwarded-For: \x01",
    b"Accept-Encoding: gzip;q=nan",
    b'If-Match: "' + b"x" * 3000 + b'"',
    b'Forwarded: for="[::1]"',
]


def _lookalike(random: Random) -> Any:
    """A JSON value from a list of nasty ones."""
    return random.choice(VALUES)()


VALUES: list[Callable[[], Any]] = [
    lambda: None,
    lambda: True,
    lambda: 0,
    lambda: -1,
    lambda: 2**63,
    lambda: 10**400,
    lambda: 1.5,
    lambda: "",
    lambda: " ",
    lambda: "\x00",
    lambda: "a\x00b",
    lambda: "\ud800",
    lambda: "x" * 70_000,
    lambda: "日本",
    lambda: "\u202e",
    lambda: "..",
    lambda: "a/b",
    lambda: "{{7*7}}",
    lambda: "${HOME}",
    lambda: "1e400",
    lambda: "NaN",
    lambda: "9999-12-31T23:59:60Z",
    lambda: "0000-00-00T00:00:00Z",
    lambda: "-",
    list,
    dict,
    lambda: [[[[[]]]]],
    lambda: {"": {"": None}},
    lambda: {"a": 1} | {str(number): number for number in range(300)},
    lambda: "item.updated",
    lambda: "shop",
    lambda: "\ufeff",
    lambda: "e\u0301",
    lambda: "'; DROP TABLE sync.events; --",
    lambda: "a" * 3000,
    lambda: 1e308,
]


def good_event(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": f"f{number}",
        "source": "shop",
        "type": "item.updated",
        "subject": f"k{number % 50}",
        "version": number + 1,
        "data": {"key": f"k{number % 50}", "name": "n", "store": "A", "v": number + 1},
        **changes,
    }


def dumped(document: Any) -> bytes:
    """As JSON, lone surrogates and numbers of any size included."""
    return json.dumps(document).encode()


# Events with nasty values -------------------------------------------------------------------------------------------

FIELDS = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "version",
    "time",
    "group",
    "partial",
    "data",
    "datacontenttype",
    "dataschema",
    "traceparent",
    "data_base64",
    "nosuch",
    "Upper",
    "a" * 300,
]


def event_values(seed: int, number: int, key: str) -> Case:
    """A good event, or a batch of some, with nasty values in one or two of its fields."""
    random = Random(f"values {seed} {number}")
    event = good_event(number)
    for name in random.sample(FIELDS, random.choice([1, 1, 1, 2])):
        event[name] = _lookalike(random)
    if random.random() < 0.3 and isinstance(event.get("data"), dict):
        event["data"][random.choice(["key", "name", "store", "v", "x"])] = _lookalike(random)
    if random.random() < 0.2:
        own = {"id": f"o{number}", "key": "k1", "op": "update", "v": number, "row": {"key": "k1", "v": number}}
        own[random.choice(list(own))] = _lookalike(random)
        return Case(post("/v1/sources/lab/events", dumped(own), key))
    if random.random() < 0.3:
        batch = [event, *(good_event(10**7 + number * 10 + index) for index in range(random.randrange(4)))]
        path = "/v1/events" + random.choice(["", "?partial=true"])
        return Case(post(path, dumped(batch), key, b"application/cloudevents-batch+json"))
    return Case(post("/v1/events", dumped(event), key, b"application/cloudevents+json"))


# Structured requests ------------------------------------------------------------------------------------------------


def _body(random: Random, number: int) -> bytes:
    match random.randrange(12):
        case 0:
            return b""
        case 1:
            return random.randbytes(random.randrange(200))
        case 2:
            return b"[" * random.choice([10, 1000, 50_000])
        case 3:
            return b"[" + b"1," * random.choice([10, 5000]) + b"1]"
        case 4:
            return gzip.compress(dumped(good_event(number)))
        case 5:
            return gzip.compress(b"\0" * random.choice([1000, 9_000_000]))[: random.choice([None, 20, -3])]
        case 6:
            return zlib.compress(dumped([good_event(number)]))
        case 7:
            return dumped(good_event(number)).replace(
                b'"1.0"', random.choice([b"NaN", b"1", b'"\\ud800"', b"-0", b"01"])
            )
        case 8:
            return b'{"id": 1, "id": 2}'
        case 9:
            return dumped(_lookalike(random))
        case 10:
            return dumped([_lookalike(random) for _ in range(random.randrange(20))])
    return dumped(good_event(number))


def structured(seed: int, number: int, key: str) -> Case:
    """A request that is HTTP, with odd paths, queries, headers, bodies and keys."""
    random = Random(f"structured {seed} {number}")
    path = random.choice(PATHS)
    if path.endswith("/") and random.random() < 0.9:
        path += random.choice([*PIECES, "p1", "p1", quote(random.randbytes(4))])
    method = random.choice([*METHODS, "GET", "GET", "GET", "POST", "POST", "POST", "POST"])
    line = f"{method} {path}{random.choice([*QUERIES, '', '', ''])} HTTP/1.1".encode("utf-8", "surrogatepass")
    body = _body(random, number) if random.random() < 0.7 else b""
    headers = [line, b"Host: 127.0.0.1", b"Connection: close", *random.sample(HEADERS, random.choice([0, 1, 2, 3, 6]))]
    if "websocket" in fuzz_upstreams.GATED:
        headers = [each for each in headers if each != b"Upgrade: websocket"]
    if random.random() < 0.85:
        headers.append(b"X-API-Key: " + key.encode())
    if random.random() < 0.6:
        headers.append(
            b"Content-Type: "
            + random.choice(
                [b"application/json", b"application/cloudevents+json", b"application/cloudevents-batch+json"]
            )
        )
    if random.random() < 0.2:
        size = random.choice([1, 7, 1000])
        chunks = [body[at : at + size] for at in range(0, min(len(body), 20_000), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        headers.append(b"Transfer-Encoding: chunked")
    elif body:
        headers.append(b"Content-Length: %d" % len(body))
    return Case(b"\r\n".join([headers[0], *random.sample(headers[1:], len(headers) - 1)]) + b"\r\n\r\n" + body)


# Malformed at the level of HTTP -------------------------------------------------------------------------------------

LINES = [
    b"Content-Length: -1",
    b"Content-Length: 0x10",
    b"Content-Length: 5, 6",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: 5\r\nContent-Length: 6",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer_Encoding: chunked",
    b"Transfer-Encoding: xchunked",
    b" folded: 1",
    b"\tX: 1",
    b"X : 1",
    b": 1",
    b"X",
    b"X: a\x00b",
    b"X: a\nY: b",
    b"X: a\rY: b",
    b"X: " + b"a" * 30_000,
    b"\x80\xff: 1",
    b"Host: a\r\nHost: b",
    b"Host:",
    b"Host: [::1",
    b"Expect: 200-ok",
    b"Connection: close, close,,",
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nConnection: Upgrade, HTTP2-Settings",
]
STARTS = [
    b"",
    b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/0.9\r\n",
    b"GET / HTTP/1.1 HTTP/1.1\r\n",
    b"GET  /  HTTP/1.1\r\n",
    b"GET /healthz\r\n\r\n",
    b"\x00" * 50,
    b"GET /\x00 HTTP/1.1\r\n",
    b"POST /v1/events HTTP/1.1\n",
    b"GET /healthz HTTP/9.9\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n",
]


def malformed(seed: int, number: int, key: str) -> Case:
    """A good request whose bytes were changed, or one that is no HTTP at all; its sender closes after it."""
    random = Random(f"malformed {seed} {number}")
    event = dumped(good_event(number))
    lines = [
        b"Host: 127.0.0.1",
        b"X-API-Key: " + key.encode(),
        b"Content-Type: application/cloudevents+json",
        b"Content-Length: %d" % len(event),
    ]
    start = b"POST /v1/events HTTP/1.1\r\n"
    match random.randrange(6):
        case 0:
            start = random.choice(STARTS)
        case 1:
            lines[random.randrange(len(lines)) :] = random.sample(LINES, random.choice([1, 2]))
        case 2:
            lines += random.sample(LINES, random.choice([1, 2, 3]))
        case 3:
            return Case(random.randbytes(random.randrange(1, 400)), half_close=True)
    data = bytearray(start + b"\r\n".join(lines) + b"\r\n\r\n" + event)
    for _ in range(random.choice([0, 1, 1, 3, 10])):
        at = random.randrange(len(data))
        match random.randrange(5):
            case 0:
                data[at] = random.randrange(256)
            case 1:
                del data[at : at + random.randrange(1, 40)]
            case 2:
                data[at:at] = random.choice([b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b"\x85", b"0\r\n\r\n", b":"])
            case 3:
                data[at:at] = data[at : at + random.randrange(1, 60)]
            case 4:
                del data[at:]
        if not data:
            break
    if random.random() < 0.1:
        data *= 3  # pipelined
    return Case(bytes(data), half_close=True)
