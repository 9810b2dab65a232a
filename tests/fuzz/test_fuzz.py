"""Tens of thousands of odd requests and odd responses: no 5xx of our making, no hang, no lost event, no lost outcome.

The service and the drain are processes of their own. A small part with a fixed seed runs with all tests;
``make test-fuzz`` runs all of it and prints a table. ``SYNC_FUZZ_SEED`` chooses other requests; ``SYNC_FUZZ_WITHOUT``
names kinds of responses that are left out, separated by commas.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fuzz_upstreams
import hypothesis
import psutil
import pytest
import schemathesis
from api_client import key_for
from fuzz_callers import Case, event_values, good_event, malformed, structured
from fuzz_service import (
    Exchange,
    Memory,
    Service,
    Watch,
    environment,
    exchange,
    post,
    running_service,
    until_ready,
    watching,
)
from fuzz_upstreams import OddUpstream, odd_upstream
from paths import SUPPORT
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance
from sqlalchemy import Engine

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.operations.dead_records import redrive_dead_records
from sync_orchestrator.core.operations.events import redrive_events
from sync_orchestrator.core.push.dead_records import DeadSelection

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("SYNC_FUZZ_SEED", "1"))
DEADLINE_SECONDS = 15.0
MAX_GROWTH_MB = 300
WORKERS = 12
KEYS = 60
OUTCOMES = {"acknowledged", "unknown", "postponed", "transient", "permanent", "auth", "throttled", "reference"}
CATCH_UP_SECONDS = 90
WORK = """SELECT FROM sync.records WHERE out_of_sync AND stopped IS NULL
UNION ALL SELECT FROM sync.events WHERE state IN ('pending', 'leased')"""
HEAD = "HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
MAX_HANGS = 3  # more would only take time
GONE = "the handler is closed"


@dataclass(frozen=True)
class Sizes:
    """How many requests of each kind."""

    malformed: int
    structured: int
    values: int
    described: int
    proxied: int
    drained: int


TINY = Sizes(malformed=90, structured=70, values=40, described=0, proxied=90, drained=40)
WHOLE = Sizes(malformed=20_000, structured=24_000, values=4_000, described=3_000, proxied=6_000, drained=4_000)


@dataclass
class Row:
    """One kind of requests, and what came of them."""

    name: str
    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    ours: list[str] = field(default_factory=list)
    """5xx of our making, with their requests."""
    upstreams: int = 0
    """502, 503 and 504 in place of an upstream's fault."""
    hangs: list[str] = field(default_factory=list)
    unanswered: int = 0
    worst_seconds: float = 0.0
    seconds: float = 0.0
    watch: Watch | None = None
    accepted: int = 0
    ids: set[str] = field(default_factory=set)

    def add(
        self, request: bytes, found: Exchange, upstream_statuses: Iterable[int] = (), *, legacy: bool = False
    ) -> None:
        """Counts a response. What legacy says passes as it is, its own 5xx too."""
        self.requests += 1
        self.worst_seconds = max(self.worst_seconds, found.seconds)
        status = found.status
        self.statuses[str(status)] += 1
        if found.hung:
            self.hangs.append(repr(request[:300]))
        elif status is None:
            self.unanswered += 1
        elif status in upstream_statuses:
            self.upstreams += 1
        elif status >= 500 and not (legacy and b"Something is wrong here" not in found.data):
            self.ours.append(f"{status} {found.data[-200:]!r} to {request[:600]!r}")

    def shown(self) -> list[str]:
        watch = [self.watch.figures("healthz"), self.watch.figures("event")] if self.watch else ["", ""]
        return [
            self.name,
            f"{self.requests} in {self.seconds:.0f} s",
            str(len(self.ours)),
            str(self.upstreams),
            str(len(self.hangs)),
            str(self.unanswered),
            f"{self.worst_seconds:.1f} s",
            *watch,
        ]


@dataclass
class Table:
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        head = [
            "run",
            "requests",
            "5xx of ours",
            "502-504",
            "hangs",
            "unanswered",
            "worst",
            "/healthz meanwhile",
            "a good event meanwhile",
        ]
        lines = [head, ["---"] * len(head), *(row.shown() for row in self.rows)]
        return "\n".join(["", *("| " + " | ".join(line) + " |" for line in lines), "", *self.notes, ""])


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Any:
    table = Table()
    yield table
    if request.config.getoption("markexpr") == "long":
        capture: Any = request.config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print(table.text())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def in_parallel(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(WORKERS):
            tasks.create_task(worker())


# Callers ------------------------------------------------------------------------------------------------------------


async def flood(service: Service, key: str, row: Row, count: int, make: Callable[[int, int, str], Case]) -> None:
    """Sends the requests of one kind, with good ones beside them."""
    began = time.monotonic()

    async def one(number: int) -> None:
        case = make(SEED, number, key)
        found = await exchange(service.port, case.request, DEADLINE_SECONDS, half_close=case.half_close)
        row.add(case.request, found)
        assert len(row.hangs) < MAX_HANGS, row.hangs
        if found.status == 202 and not case.half_close:
            note_accepted(row, case.request, found)

    async with watching(service, key, row.name.replace(" ", "-")) as row.watch:
        await in_parallel(count, one)
    row.seconds = time.monotonic() - began


def note_accepted(row: Row, request: bytes, found: Exchange) -> None:
    """Keeps how many events were acknowledged, and the ids of those that the request shows plainly."""
    try:
        answer = json.loads(found.data.partition(b"\r\n\r\n")[2])
    except ValueError:
        return
    row.accepted += answer["accepted"]
    try:
        document = json.loads(request.partition(b"\r\n\r\n")[2])
    except ValueError:
        return
    events = document if isinstance(document, list) else [document]
    if answer["accepted"] + answer["duplicates"] == len(events) and b"\r\nce-" not in request:
        row.ids |= {event["id"] for event in events if isinstance(event, dict) and isinstance(event.get("id"), str)}


def describe(service: Service, key: str, row: Row, count: int) -> None:
    """Requests that Schemathesis makes of the service's own description, and its checks of the responses."""
    began = time.monotonic()
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{service.port}/openapi.json", headers={"X-API-Key": key})
    found: Any = schema.get_all_operations()
    operations = [each.ok() for each in found]

    def checked(operation: Any) -> None:
        @hypothesis.seed(SEED)
        @hypothesis.settings(
            max_examples=max(1, count // len(operations)),
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def one(case: Any) -> None:
            sent = time.monotonic()
            response = case.call(headers={"X-API-Key": key}, timeout=DEADLINE_SECONDS)
            row.requests += 1
            row.statuses[str(response.status_code)] += 1
            row.worst_seconds = max(row.worst_seconds, time.monotonic() - sent)
            if response.status_code >= 500:
                row.ours.append(f"{response.status_code} {response.text[:200]} to {case.as_curl_command()[:600]}")
            case.validate_response(
                response, checks=[not_a_server_error, status_code_conformance, content_type_conformance]
            )

        one()

    for operation in operations:
        checked(operation)
    row.seconds = time.monotonic() - began


async def callers(engine: Engine, url: str, folder: Path, sizes: Sizes, table: Table) -> None:
    key = key_for(engine, "admin")
    async with odd_upstream(SEED) as upstream:
        with running_service(folder, url, upstream.url, free_port()) as service:
            await until_ready(service)
            rows = [Row("malformed HTTP"), Row("structured HTTP"), Row("event values"), Row("Schemathesis")]
            table.rows += rows
            first = [structured(0, number, key).request for number in range(50)]
            await asyncio.gather(*(exchange(service.port, request, 5) for request in first))
            service.memory.look()
            await flood(service, key, rows[0], sizes.malformed, malformed)
            await flood(service, key, rows[1], sizes.structured, structured)
            await flood(service, key, rows[2], sizes.values, event_values)
            if sizes.described:
                async with watching(service, key, "described") as rows[3].watch:
                    await asyncio.to_thread(describe, service, key, rows[3], sizes.described)
            assert service.is_alive, service.log.read_text()[-3000:]
            table.notes.append(
                f"callers: the service used {service.memory.first / 2**20:.0f} MB at first and "
                f"{service.memory.peak / 2**20:.0f} MB at most; {sum(row.accepted for row in rows)} "
                "events were acknowledged"
            )
            check_service(service, rows)
    check_ledger(engine, rows)


def check_service(service: Service, rows: list[Row]) -> None:
    """No 5xx of ours, no hang, good requests served, memory bounded, no traceback in the log."""
    for row in rows:
        assert not row.ours, (len(row.ours), row.ours[:5])
        assert not row.hangs, (len(row.hangs), row.hangs[:5])
        assert row.watch is None or not row.watch.wrong, row.watch.wrong[:5]
    assert service.memory.growth_mb < MAX_GROWTH_MB
    assert not (found := tracebacks(service.log)), found


def tracebacks(log: Path) -> str:
    """The first traceback of a log, other than uvicorn's own about a caller that has closed the connection already."""
    _, *texts = log.read_text(errors="replace").split("Traceback")
    return next((text[:6000] for text in texts if GONE not in text), "")


def check_ledger(engine: Engine, rows: list[Row]) -> None:
    """Each event that was acknowledged is in the ledger, and its states add up."""
    with engine.begin() as connection:
        kept = {row.event_id for row in run(connection, "SELECT event_id FROM sync.event_ids")}
        received = sum(row.n for row in run(connection, "SELECT n FROM sync.tallies WHERE what = 'received'"))
        assert count_conservation(connection).received == sum(count_conservation(connection).states.values())
    sent = {each for row in rows for each in [*row.ids, *(row.watch.sent if row.watch else [])]}
    assert sent
    assert not sent - kept
    assert received >= sum(row.accepted for row in rows)


# Upstreams ----------------------------------------------------------------------------------------------------------

PROXIED = [
    "GET /proxy/stones/{n}",
    "GET /proxy/stones/{n}?lang=de",
    "POST /proxy/orders/{n}",
    "GET /proxy/old/{n}",
    "GET /proxy/old/{n}",
    "HEAD /proxy/old/{n}",
]


async def proxied(service: Service, upstream: OddUpstream, key: str, row: Row, count: int) -> None:
    """Proxy requests whose upstream responds oddly; each 20th finds it in order again and must be served."""
    began = time.monotonic()
    spoiled: list[str] = []

    async def one(number: int) -> None:
        is_good = number % 20 == 19
        method, path = PROXIED[number % len(PROXIED)].split(" ")
        path = path.format(n="good" if is_good else f"p{number}")
        request = (
            post(path, b"{}", key) if method == "POST" else f"{method} {path} {HEAD}X-API-Key: {key}\r\n\r\n".encode()
        )
        for _ in range(3 if is_good else 1):  # a connection that the upstream is closing may be in the pool still
            found = await exchange(service.port, request, DEADLINE_SECONDS)
            row.add(request, found, (502, 503, 504), legacy=path.startswith("/proxy/old/"))
            if found.status in (200, 503):
                break
        assert len(row.hangs) < MAX_HANGS, row.hangs
        if is_good and found.status not in (200, 503):
            spoiled.append(f"{found.status} {found.data[-200:]!r} to {request[:200]!r}")

    async with watching(service, key, "proxied") as row.watch:
        await in_parallel(count, one)
    row.seconds = time.monotonic() - began
    assert not spoiled, (len(spoiled), spoiled[:5])


def rows_of(engine: Engine, statement: str) -> Any:
    with engine.begin() as connection:
        return run(connection, statement)


async def drained(
    service: Service, upstream: OddUpstream, engine: Engine, url: str, folder: Path, key: str, row: Row, count: int
) -> Memory:
    """Pushes and reads of a drain whose systems respond oddly, then in order; in the end all is in sync."""
    began = time.monotonic()
    end = folder / "end"
    with (folder / "drain.log").open("wb") as log:
        drain = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, str(SUPPORT / "fuzz_drain.py"), str(end)],
            env={**environment(folder, url), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=log,
            stderr=log,
        )
    memory = Memory(psutil.Process(drain.pid))
    version = 0

    async def change_all() -> None:
        nonlocal version
        version += 1
        events = []
        for index in range(KEYS):
            number = 10**6 * version + index
            name = f"d{index}"
            upstream.versions[name] = number
            event = good_event(
                number,
                id=f"d{number}",
                subject=name,
                version=number,
                data={"key": name, "name": f"n{number}", "store": "A", "v": number},
            )
            if index % 10 == 9:
                del event["data"]  # thin: it is read from its source
            if index % 10 == 8 and version % 3 == 2:
                event["type"] = "item.deleted"
                del upstream.versions[name]
            events.append(event)
        found = await exchange(
            service.port,
            post("/v1/events", json.dumps(events).encode(), key, b"application/cloudevents-batch+json"),
            DEADLINE_SECONDS,
        )
        row.add(b"the batch", found)
        assert found.status == 202, found.data

    before, of_erp = sum(upstream.counts.values()), upstream.counts["erp"]
    try:
        async with watching(service, key, "drained") as row.watch:
            stuck_since, seen = time.monotonic(), before
            while (now := sum(upstream.counts.values())) - before < count or upstream.counts[
                "erp"
            ] - of_erp < count * 2 // 3:
                if now > seen:
                    stuck_since, seen = time.monotonic(), now
                assert drain.poll() is None, (folder / "drain.log").read_text()[-3000:]
                assert time.monotonic() - stuck_since < 60, "the drain makes no calls any more"
                if now > before:  # it has started
                    memory.look()
                if len(rows_of(engine, WORK)) < KEYS // 4:
                    await change_all()
                await asyncio.sleep(0.2)
        row.requests = sum(upstream.counts.values()) - before
        check_outcomes(engine, upstream)
        upstream.is_odd = False
        await change_all()
        redrive_events(engine)
        ends = time.monotonic() + CATCH_UP_SECONDS
        while left := outcome_unknown(engine):
            assert time.monotonic() < ends, f"not in sync: {left[:5]}"
            assert drain.poll() is None, (folder / "drain.log").read_text()[-3000:]
            memory.look()
            redrive_events(engine)  # an odd response to a call that was under way may have come since
            redrive_dead_records(engine, DeadSelection("item"))
            await asyncio.sleep(1)
    finally:
        end.touch()
        try:
            await asyncio.to_thread(drain.wait, 30)
        except subprocess.TimeoutExpired:
            drain.kill()
            await asyncio.to_thread(drain.wait)
    row.seconds = time.monotonic() - began
    check_in_sync(engine, upstream)
    assert not (found := tracebacks(folder / "drain.log")), found
    return memory


def check_outcomes(engine: Engine, upstream: OddUpstream) -> None:
    """Each call of a write has an outcome that there is, and what is called certain is so at the third party."""
    found = Counter(
        {
            row.outcome: row.n
            for row in rows_of(engine, "SELECT outcome, count(*) AS n FROM sync.push_attempts GROUP BY 1")
        }
    )
    assert set(found) <= OUTCOMES, found
    assert found["unknown"] or found.total() < 200, found  # few may hold none by chance
    # A record that is in sync by its row was acknowledged under the id that it has at the third party.
    certain = rows_of(
        engine,
        "SELECT key, external_id FROM sync.records WHERE applied_revision > 0 AND NOT out_of_sync "
        "AND lease_until IS NULL AND NOT deleted AND applied_digest IS NOT NULL",
    )
    wrong = [
        (row.key, row.external_id) for row in certain if upstream.store.get(row.external_id, {}).get("code") != row.key
    ]
    assert not wrong, wrong[:5]


def outcome_unknown(engine: Engine) -> list[str]:
    events = rows_of(engine, "SELECT entity, key, state, error FROM sync.events WHERE key LIKE 'd%%' LIMIT 5")
    records = rows_of(engine, "SELECT key, stopped, error FROM sync.records WHERE out_of_sync LIMIT 5")
    return [str(tuple(row)) for row in [*events, *records]]


def check_in_sync(engine: Engine, upstream: OddUpstream) -> None:
    """The third party holds each record once, and nothing else."""
    held = Counter(record["code"] for record in upstream.store.values())
    twice = [code for code, number in held.items() if number > 1]
    assert not twice, twice
    names = {record["code"]: record["name"] for record in upstream.store.values() if record["code"].startswith("d")}
    assert names == {key: f"n{version}" for key, version in upstream.versions.items()}


async def upstreams(engine: Engine, url: str, folder: Path, sizes: Sizes, table: Table) -> None:
    key = key_for(engine, "admin")
    async with odd_upstream(SEED) as upstream:
        with running_service(folder, url, upstream.url, free_port()) as service:
            await until_ready(service)
            rows = [Row("upstreams of the proxy"), Row("upstreams of the drain")]
            table.rows += rows
            good = f"GET /proxy/old/good {HEAD}X-API-Key: {key}\r\n\r\n".encode()
            await asyncio.gather(*(exchange(service.port, good, 5) for _ in range(50)))
            service.memory.look()
            upstream.is_odd = True
            await proxied(service, upstream, key, rows[0], sizes.proxied)
            memory = await drained(service, upstream, engine, url, folder, key, rows[1], sizes.drained)
            assert service.is_alive, service.log.read_text()[-3000:]
            table.notes.append(
                f"upstreams: the service used {service.memory.first / 2**20:.0f} MB at first and "
                f"{service.memory.peak / 2**20:.0f} MB at most, the drain {memory.first / 2**20:.0f} and "
                f"{memory.peak / 2**20:.0f} MB"
            )
            check_service(service, rows)
            assert memory.growth_mb < MAX_GROWTH_MB
            assert rows[0].unanswered == 0, rows[0].statuses
            assert not upstream.cookies, upstream.cookies[:5]
    check_ledger(engine, rows)


# Small with all tests, whole by make test-fuzz ----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def gated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_upstreams, "GATED", set(filter(None, os.environ.get("SYNC_FUZZ_WITHOUT", "").split(","))))


async def test_some_odd_requests_of_callers_break_nothing(
    engine: Engine, database_url: str, tmp_path: Path, table: Table
) -> None:
    await callers(engine, database_url, tmp_path, TINY, table)


async def test_some_odd_responses_of_upstreams_break_nothing(
    engine: Engine, database_url: str, tmp_path: Path, table: Table
) -> None:
    await upstreams(engine, database_url, tmp_path, TINY, table)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_no_request_of_a_caller_breaks_anything(
    engine: Engine, database_url: str, tmp_path: Path, table: Table
) -> None:
    await callers(engine, database_url, tmp_path, WHOLE, table)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_no_response_of_an_upstream_breaks_anything(
    engine: Engine, database_url: str, tmp_path: Path, table: Table
) -> None:
    await upstreams(engine, database_url, tmp_path, WHOLE, table)
