"""The service under test as a child process, its configuration, its memory, and a watch that probes it under flood."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

_START_SECONDS = 60
_PROBE_INTERVAL_SECONDS = 0.1
_PROBE_DEADLINE_SECONDS = 20.0
_RESPONSE = 65_536


def configuration(upstream: str) -> dict[str, Any]:
    """``item`` of the source ``shop``, mirrored to ``erp``, and three routes; all systems are behind ``upstream``."""
    post = {"method": "POST", "third_party": "erp", "allow_writes": True}
    return {
        "sources": {
            "shop": {"base_url": f"{upstream}/shop", "timeout": "1s"},
            "lab": {
                "base_url": f"{upstream}/shop",
                "timeout": "1s",
                "events": {
                    "entity": "item",
                    "id": "body.id",
                    "key": "body.key",
                    "action": "body.op",
                    "version": "body.v",
                    "data": "body.row",
                },
            },
        },
        "third_parties": {
            "erp": {
                "base_url": f"{upstream}/erp",
                "timeout": "1s",
                "search_lag": 0,
                "in_flight_window": 0,
                "concurrency": 16,
                "breaker": {"failures": 1_000_000, "probe_after": 0.01, "probe_cap": 0.01},
                "throttle": {"headers": False},
            }
        },
        "entities": {
            "item": {
                "owner": "shop",
                "parts": {
                    "shop": {
                        "key": "key",
                        "group": "store",
                        "version": {"path": "v", "kind": "number"},
                        "list": {"path": "/rows", "params": {"store": "{{ group }}"}, "items": "rows"},
                        "read": {"path": "/rows/{{ key }}"},
                    },
                    "lab": {
                        "key": "key",
                        "version": {"path": "v", "kind": "number"},
                        "required": False,
                        "list": {"path": "/rows"},
                        "read": {"path": "/rows/{{ key }}"},
                    },
                },
                "mapping": {"code": "key", "store": "group", "name": "shop.name"},
                "on_missing": "upsert",
                "retry": {"retries": 100, "first_wait": 0.01, "max_wait": 0.05},
                "third_party": {
                    "system": "erp",
                    "key_field": "code",
                    "group": "store",
                    "create": {"method": "POST", "path": "/items"},
                    "update": {"method": "PUT", "path": "/items/{{ id }}"},
                    "delete": {"path": "/items/{{ id }}"},
                    "read": {"path": "/items/{{ id }}"},
                    "lookup": {"path": "/items", "params": {"code": "{{ key }}"}, "items": "items"},
                    "list": {"path": "/items", "params": {"store": "{{ group }}"}, "items": "items"},
                },
            }
        },
        "routes": {
            "stone": {
                "path": "/stones/{sku}",
                "query": ["lang"],
                "headers": ["X-Shop"],
                "third_party": "erp",
                "call": {"path": "/any/{{ sku }}", "params": {"l": "{{ query.lang }}"}},
                "timeout": "2s",
            },
            "order": {
                **post,
                "path": "/orders/{no}",
                "call": {"method": "POST", "path": "/any/{{ no }}"},
                "timeout": "2s",
            },
            "old": {
                "path": "/old/{sku}",
                "headers": ["X-Shop"],
                "third_party": "erp",
                "call": {"path": "/any/{{ sku }}"},
                "rollout": {"by_header": "X-Shop"},
                "legacy": {"base_url": f"{upstream}/legacy", "timeout": "1s"},
            },
        },
        "alerts": {"group_wait": 0},
    }


@dataclass
class Memory:
    """The resident memory of a process, sampled; in bytes."""

    process: psutil.Process
    first: int = 0
    peak: int = 0

    def look(self) -> None:
        try:
            now = self.process.memory_info().rss
        except psutil.NoSuchProcess:
            return
        self.first, self.peak = self.first or now, max(self.peak, now)

    @property
    def growth_mb(self) -> float:
        return (self.peak - self.first) / 2**20


@dataclass
class Service:
    """A running ``sync-orchestrator api``; ``log`` is the file of its standard error."""

    port: int
    process: subprocess.Popen[bytes]
    memory: Memory
    log: Path

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None


def environment(folder: Path, database_url: str) -> dict[str, str]:
    return {
        **os.environ,
        "SYNC_CONFIG": str(folder / "sync.yaml"),
        "SYNC_DATABASE_URL": database_url,
        "SYNC_HOME": str(folder / "home"),
        "PYTHONWARNINGS": "default",
    }


@contextmanager
def running_service(folder: Path, database_url: str, upstream: str, port: int) -> Iterator[Service]:
    """Starts the service as its own process and ends it."""
    (folder / "sync.yaml").write_text(yaml.safe_dump(configuration(upstream)))
    log = folder / "api.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "sync_orchestrator", "api", "--port", str(port)],
            env=environment(folder, database_url),
            stdout=errors,
            stderr=errors,
        )
    try:
        yield Service(port, process, Memory(psutil.Process(process.pid)), log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def until_ready(service: Service) -> None:
    ends = time.monotonic() + _START_SECONDS
    while True:
        try:
            if (
                await exchange(service.port, b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", 2)
            ).status == 200:
                return
        except OSError:
            pass
        assert service.is_alive, service.log.read_text()[-2000:]
        assert time.monotonic() < ends, "the service did not become ready"
        await asyncio.sleep(0.1)


@dataclass(frozen=True)
class Exchange:
    """What came back for a request's bytes; ``hung``: neither a response nor the end of the connection in time."""

    data: bytes
    seconds: float
    hung: bool = False

    @property
    def status(self) -> int | None:
        """The status of the response, None where the connection was closed without one."""
        word = self.data[9:12] if self.data.startswith(b"HTTP/1.") else b""
        return int(word) if word.isdigit() else None


async def exchange(port: int, request: bytes, deadline_seconds: float, *, half_close: bool = False) -> Exchange:
    """Sends bytes over a connection of their own and reads until its end, or until a whole response is there."""
    began = time.monotonic()
    data = b""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(deadline_seconds):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            if half_close:
                writer.write_eof()
            while piece := await reader.read(_RESPONSE):
                data += piece
                if _is_whole(data):
                    break
    except TimeoutError:
        return Exchange(data, time.monotonic() - began, hung=not data)
    except OSError:  # the service has closed the connection already
        pass
    finally:
        if writer is not None:
            writer.transport.abort()
    return Exchange(data, time.monotonic() - began)


def _is_whole(data: bytes) -> bool:
    head, found, body = data.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return bool(found) and length.isdigit() and len(body) >= int(length)


@dataclass
class Watch:
    """Good requests made all the time: their latencies in seconds, and what went wrong with them."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: {"healthz": [], "event": []})
    wrong: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    """The ids of the good events that were acknowledged."""

    def figures(self, name: str) -> str:
        times = sorted(self.latencies[name]) or [0.0]
        p95 = times[min(len(times) - 1, int(len(times) * 0.95))]
        return f"p50 {statistics.median(times) * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms, max {times[-1] * 1000:.0f} ms"


@asynccontextmanager
async def watching(service: Service, key: str, name: str) -> AsyncIterator[Watch]:
    """Probes ``/healthz`` and a good single event while the body runs, and samples the memory of the service."""
    watch = Watch()

    async def probe() -> None:
        number = 0
        while True:
            number += 1
            service.memory.look()
            await _probe(
                service, watch, "healthz", b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", 200
            )
            event_id = f"good-{name}-{number}"
            body = json.dumps(
                {
                    "specversion": "1.0",
                    "id": event_id,
                    "source": "shop",
                    "type": "item.updated",
                    "subject": f"good{number % 20}",
                    "version": number,
                    "data": {"key": f"good{number % 20}", "name": "n", "store": "A", "v": number},
                }
            ).encode()
            request = post("/v1/events", body, key, b"application/cloudevents+json")
            if await _probe(service, watch, "event", request, 202):
                watch.sent.append(event_id)
            await asyncio.sleep(_PROBE_INTERVAL_SECONDS)

    task = asyncio.create_task(probe())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        service.memory.look()


async def _probe(service: Service, watch: Watch, name: str, request: bytes, status: int) -> bool:
    found = await exchange(service.port, request, _PROBE_DEADLINE_SECONDS)
    watch.latencies[name].append(found.seconds)
    if found.status == status:
        return True
    watch.wrong.append(f"{name}: {found.status} after {found.seconds:.1f} s: {found.data[:200]!r}")
    return False


def post(path: str, body: bytes, key: str, kind: bytes = b"application/json", *headers: bytes) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1".encode(),
        b"Host: 127.0.0.1",
        b"Connection: close",
        b"X-API-Key: " + key.encode(),
        b"Content-Type: " + kind,
        b"Content-Length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
