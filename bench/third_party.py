"""The fastest third party at hand: upserts, listings and counts over HTTP, with latency and a limit where wanted.

``python -m bench.third_party PORT [--latency SECONDS] [--limit CALLS_A_SECOND] [--records N --groups N]``: with so many
records in so many groups from the start, each as ``record`` makes it. ``GET /stats`` tells the calls it had and how
many of them it refused. With ``--errors SHARE --lost SHARE --seed N`` so many of the writing calls are answered 500
with nothing stored, or are stored and never answered.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import httptools
import orjson
import uvloop


def code(number: int) -> str:
    """The code of a record that is there from the start; they sort by number."""
    return f"k{number:08}"


def record(number: int, groups: int) -> dict[str, Any]:
    """A record that is there from the start."""
    return {
        "code": code(number),
        "name": "a lamp that stands on a table",
        "price": 13.5 + number % 1000,
        "store": f"store {number % groups}",
    }


class Filled:
    """What is there from the start, by group, as it goes over the wire; it stays as it is."""

    def __init__(self, records: int, groups: int) -> None:
        self._codes: dict[str, list[str]] = defaultdict(list)
        self._lines: dict[str, list[bytes]] = defaultdict(list)
        for number in range(records):
            made = record(number, groups)
            self._codes[made["store"]].append(made["code"])
            self._lines[made["store"]].append(orjson.dumps(made))

    def count(self, group: str) -> int:
        return len(self._codes.get(group, ()))

    def page(self, group: str, after: str, limit: int) -> bytes:
        """The records of a group that follow a code, as a JSON list."""
        start = bisect_right(self._codes.get(group, []), after)
        return b"[" + b",".join(self._lines.get(group, [])[start : start + limit]) + b"]"


class Store:
    """What it holds, by code, and what it was asked."""

    def __init__(self, limit: float | None, filled: Filled) -> None:
        self.records: dict[str, Any] = {}
        self._filled = filled
        self.calls = 0
        self.refused = 0
        self.writes = 0
        self.created = 0
        self._limit = limit
        self._paid_until = 0.0

    def allows(self, now: float) -> bool:
        """A token bucket that holds a tenth of a second's worth."""
        if self._limit is None:
            return True
        owed = max(self._paid_until, now)
        if owed - now > 0.1:
            self.refused += 1
            return False
        self._paid_until = owed + 1 / self._limit
        return True

    def answer(self, method: bytes, url: bytes, body: bytes) -> tuple[int, Any]:
        """Status and body for one call."""
        path = url.partition(b"?")[0]
        if path == b"/stats":
            return 200, {
                "calls": self.calls,
                "refused": self.refused,
                "records": len(self.records),
                "writes": self.writes,
                "created": self.created,
            }
        self.calls += 1
        if path == b"/items" and method == b"POST":  # a create: each call makes one more of it
            item = orjson.loads(body)
            self.records[item["code"]] = item
            self.created += 1
            self.writes += 1
            return 201, {"id": self.created}
        if path in (b"/items", b"/count"):
            asked = {name: values[0] for name, values in parse_qs(url.partition(b"?")[2].decode()).items()}
            if path == b"/count":
                return 200, {"count": self._filled.count(asked["store"])}
            return 200, self._filled.page(asked["store"], asked.get("after", ""), int(asked["limit"]))
        if path == b"/bulk":
            items = orjson.loads(body)["items"]
            for item in items:
                self.records[item["code"]] = item
            self.writes += len(items)
            return 200, {"results": [{"code": item["code"], "status": 200} for item in items]}
        key = path.rpartition(b"/")[2].decode()
        if method == b"PUT":
            self.records[key] = orjson.loads(body)
            self.writes += 1
            return 200, {"code": key}
        if method == b"DELETE":
            return (200, {}) if self.records.pop(key, None) is not None else (404, {})
        found = self.records.get(key)
        return (404, {}) if found is None else (200, found)


class Faults:
    """Which writing calls go wrong, and how: drawn from a seed, one draw a call."""

    def __init__(self, errors: float, lost: float, seed: int) -> None:
        self._errors, self._lost = errors, lost
        self._draw = random.Random(seed).random

    def next(self, method: bytes) -> str:
        """``error``, ``lost`` or nothing."""
        if method == b"GET" or not self._errors + self._lost:
            return ""
        drawn = self._draw()
        return "error" if drawn < self._errors else "lost" if drawn < self._errors + self._lost else ""


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests are answered in order, each after the latency."""

    def __init__(self, store: Store, latency: float, faults: Faults) -> None:
        self._store = store
        self._faults = faults
        self._latency = latency
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url, self._body = url, []

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method()
        fault = self._faults.next(method)
        if self._url != b"/stats" and not self._store.allows(self._loop.time()):
            status, said = 429, {"error": "too many"}
        elif fault == "error":
            status, said = 500, {"error": "not now"}
        else:
            status, said = self._store.answer(method, self._url, b"".join(self._body))
        if fault == "lost":
            self._transport.close()
            return
        body = said if isinstance(said, bytes) else orjson.dumps(said)
        whole = (
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        if self._latency:
            self._loop.call_later(self._latency, self._send, whole)
        else:
            self._send(whole)

    def _send(self, whole: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(whole)


async def serve(port: int, made: Callable[[], asyncio.Protocol]) -> None:
    """Serves until SIGTERM."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    server = await loop.create_server(made, "127.0.0.1", port, backlog=1024)
    await ended.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--limit", type=float)
    parser.add_argument("--records", type=int, default=0)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--errors", type=float, default=0.0)
    parser.add_argument("--lost", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    faults = Faults(words.errors, words.lost, words.seed)
    store = Store(words.limit, Filled(words.records, words.groups))
    uvloop.run(serve(words.port, lambda: Connection(store, words.latency, faults)))


if __name__ == "__main__":
    main()
