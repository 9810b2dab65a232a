"""What a slow third party gets done, beside the best fixed setting: a server whose latency grows with its load.

``python -m bench.slow_server [--quick]``. The server works on a few calls at a time; the others wait in its queue, also
those whose client has gone. The client's timeout is a few times the latency of a server that is not overloaded, and 32
calls at once are configured: by far too many. The fixed settings (a number of calls at once and a batch size) are tried
by a bare loop with the same HTTP client.

``python -m bench.slow_server --serve PORT --call SECONDS --record SECONDS --workers N`` is that server.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import httpx
import orjson
import uvloop

from bench.drain import change, payload
from bench.drain import settings as plain_settings
from bench.serving import database, free_port, served
from bench.table import Line, show
from bench.third_party import Connection, Faults, Filled, Store, serve
from sync_orchestrator.adapters.http.transport import Transport
from sync_orchestrator.composition import open_context
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.ledger.recording import record_events
from sync_orchestrator.core.runtime import perform

TIMEOUT_SECONDS = 2.0
BATCH = 25
_TABLES = ("events", "event_ids", "event_history", "records", "parts", "push_attempts", "tallies", "breaker_failures")
_FIXED = [(1, 25), (2, 25), (4, 25), (8, 25), (32, 25), (8, 5), (32, 5), (32, 1)]


class SlowConnection(Connection):
    """Answers when one of a few workers has had time for the call, in the order in which calls came."""

    queue: ClassVar[deque[tuple[float, SlowConnection, bytes, bytes, bytes]]] = deque()
    idle = 1
    call_seconds = 0.0
    record_seconds = 0.0

    def on_message_complete(self) -> None:
        method, url, body = self._parser.get_method(), self._url, b"".join(self._body)
        if url == b"/stats":
            super().on_message_complete()
            return
        records = body.count(b'"code"') if method != b"GET" else 1
        seconds = self.call_seconds + self.record_seconds * max(1, records)
        self.queue.append((seconds, self, method, url, body))
        self._begin()

    @classmethod
    def _begin(cls) -> None:
        if cls.idle and cls.queue:
            cls.idle -= 1
            seconds, connection, method, url, body = cls.queue.popleft()
            asyncio.get_running_loop().call_later(seconds, cls._end, connection, method, url, body)

    @classmethod
    def _end(cls, connection: SlowConnection, method: bytes, url: bytes, body: bytes) -> None:
        cls.idle += 1
        status, said = connection._store.answer(method, url, body)
        whole = orjson.dumps(said)
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(whole)}\r\n\r\n"
        connection._send(head.encode() + whole)
        cls._begin()


@contextmanager
def slow_server(call: float, per_record: float, workers: int) -> Iterator[int]:
    """The server in a process of its own; its port."""
    port = free_port()
    words = [
        "-m",
        "bench.slow_server",
        "--serve",
        str(port),
        "--call",
        str(call),
        "--record",
        str(per_record),
        "--workers",
        str(workers),
    ]
    with served(words, port, {}, "/stats"):
        yield port


def config(port: int) -> Config:
    """32 calls at once in bulk calls of 25 records."""
    told = plain_settings(port, bulk=True)
    told["third_parties"]["erp"] |= {"timeout": TIMEOUT_SECONDS, "in_flight_window": TIMEOUT_SECONDS}
    told["entities"]["product"]["third_party"]["bulk_update"]["size"] = BATCH
    told["retry"] = {"first_wait": 2, "jitter": 0}
    return Config.model_validate(told)


async def fixed(port: int, calls: int, batch: int, seconds: float) -> float:
    """Records a second that are acknowledged in time to a loop with a fixed number of calls and a fixed batch."""
    limits = httpx.Limits(max_connections=calls, max_keepalive_connections=calls)
    done, ends = 0, time.monotonic() + seconds
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", transport=Transport(limits=limits), timeout=TIMEOUT_SECONDS
    ) as client:

        async def send(number: int) -> None:
            nonlocal done
            while time.monotonic() < ends:
                items = [payload(number * batch + one) for one in range(batch)]
                try:
                    (await client.request("POST", "/bulk", json={"items": items})).raise_for_status()
                except httpx.HTTPError:
                    continue
                if time.monotonic() < ends:
                    done += batch

        await asyncio.gather(*(send(number) for number in range(calls)))
    return done / seconds


async def all_fixed(call: float, per_record: float, workers: int, seconds: float) -> dict[tuple[int, int], float]:
    """What each fixed setting reaches, at a server of its own: side by side, since the servers mostly wait."""
    with ExitStack() as servers:
        ports = [servers.enter_context(slow_server(call, per_record, workers)) for _ in _FIXED]
        rates = await asyncio.gather(
            *(fixed(port, calls, batch, seconds) for port, (calls, batch) in zip(ports, _FIXED, strict=True))
        )
        return dict(zip(_FIXED, rates, strict=True))


def drained(url: str, port: int, number: int, seconds: float) -> tuple[float, int, dict[str, Any]]:
    """Records a second that a drain acknowledges, its attempts, and the limit of calls at its end."""
    engine = open_engine(url)
    with engine.begin() as connection:
        run(connection, f"TRUNCATE {', '.join(f'sync.{table}' for table in _TABLES)}, sync.systems CASCADE")
    for at in range(0, number, 1000):
        record_events(engine, [change(at + one) for one in range(min(1000, number - at))])
    perform(context := open_context(engine, config(port)), drain(context, linger=0, most_seconds=seconds))
    engine = open_engine(url)
    with engine.begin() as connection:
        done = run(connection, "SELECT count(*) AS n FROM sync.records WHERE NOT out_of_sync")[0].n
        tried = run(connection, "SELECT count(*) AS n FROM sync.push_attempts")[0].n
        limit = run(connection, "SELECT calls_at_once, batch_share, calls_reason FROM sync.systems WHERE name = 'erp'")
    engine.dispose()
    return done / seconds, tried, dict(limit[0]._mapping)


def lines(url: str, seconds: float) -> Iterator[Line]:
    """Each line as soon as it is measured."""
    for what, call, per_record, workers in (
        ("each call takes 0.6 s, one at a time", 0.6, 0.0, 1),
        ("each call takes 1.2 s, one at a time", 1.2, 0.0, 1),
        ("each record takes 20 ms, four calls at a time", 0.0, 0.02, 4),
        ("each call takes 0.2 s and each record 10 ms, two calls at a time", 0.2, 0.01, 2),
    ):
        reached = uvloop.run(all_fixed(call, per_record, workers, seconds / 3))
        best, worst = max(reached, key=lambda pair: reached[pair]), reached[32, BATCH]
        with slow_server(call, per_record, workers) as port:
            number = int(reached[best] * seconds * 1.5) + 100
            rate, tried, limit = drained(url, port, number, seconds)
        ratio = rate / reached[best]
        acknowledged = max(1, rate * seconds)
        yield Line(
            what,
            rate,
            "records/s",
            f"best fixed, {best[0]} calls of {best[1]}: {reached[best]:.0f} /s; 32 of {BATCH}: {worst:.0f} /s; "
            f"attempts a record: {tried / acknowledged:.2f}; at the end {limit['calls_at_once']:.0f} calls of "
            f"{max(1, round(BATCH * limit['batch_share']))}",
            ratio,
            "0.80",
            ratio >= 0.8,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--call", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.serve:
        SlowConnection.call_seconds, SlowConnection.record_seconds = words.call, words.record
        SlowConnection.idle = words.workers
        store = Store(None, Filled(0, 1))
        uvloop.run(serve(words.serve, lambda: SlowConnection(store, 0.0, Faults(0.0, 0.0, 1))))
        return
    with database() as url:
        show("slow server", list(lines(url, 20.0 if words.quick else 60.0)))


if __name__ == "__main__":
    main()
