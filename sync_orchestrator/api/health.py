"""``/healthz``, ``/readyz`` and ``/metrics``: for those who operate the service.

Not here: what is counted (``core/statements/metrics.py``).
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import cast

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sync_orchestrator.api.auth import Access
from sync_orchestrator.api.database import Database
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.core.db import connections
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.ledger.probe import try_to_record
from sync_orchestrator.core.operations.queries import dead_records as dead_queries
from sync_orchestrator.core.operations.queries import metrics as metrics_queries
from sync_orchestrator.core.operations.status import seconds_since_heartbeat
from sync_orchestrator.database.migrate import is_current

READY_SECONDS = 5.0
"""The longest that ``/readyz`` waits for the database."""

_REST_SECONDS = 1.0
_SENSOR_SILENT_SECONDS = 120.0

Families = Iterator[Metric]
Collect = Callable[[Connection], Families]
"""Further figures, such as those of the proxy."""


class Health:
    def __init__(self, database: Database, access: Access, more: Collect | None = None) -> None:
        self._database = database
        self._access = access
        self._more = more
        self._looking: asyncio.Task[tuple[bool, float | None]] | None = None
        self._looked = 0.0
        self._has_own_sessions = False

    def routes(self) -> list[Route]:
        return [Route("/healthz", self.healthz), Route("/readyz", self.readyz), Route("/metrics", self.metrics)]

    async def healthz(self, request: Request) -> Response:
        """Green while the process answers."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Green while events can be recorded, which is tried.

        A sensor that is silent is reported and does not make it red: events are recorded all the same.
        """
        with self._database.answering():
            async with asyncio.timeout(READY_SECONDS):
                current, silent = await asyncio.shield(self._look())
        if not current:
            raise Refused(503, "The database has not the shape that this version needs; start it with this version.")
        heard = silent is not None and silent < _SENSOR_SILENT_SECONDS
        return JSONResponse(
            {"status": "ready", "database": "ok", "migrations": "ok", "sensor": "ok" if heard else "silent"}
        )

    def _look(self) -> asyncio.Task[tuple[bool, float | None]]:
        """One look at a time, and a second of rest between two, however many ask."""
        if self._looking is None or (self._looking.done() and time.monotonic() - self._looked >= _REST_SECONDS):
            self._looking = asyncio.create_task(asyncio.to_thread(self._tried))
            self._looking.add_done_callback(self._ended)
        return self._looking

    def _ended(self, looked: asyncio.Task[tuple[bool, float | None]]) -> None:
        self._looked = time.monotonic()
        if not looked.cancelled():
            looked.exception()  # those who asked may have gone away

    def _tried(self) -> tuple[bool, float | None]:
        engine = self._database.engine
        if not is_current(engine):
            return False, None
        if not self._has_own_sessions and connections.seems_pooled(engine) and connections.shares_sessions(engine):
            raise Refused(503, connections.POOLER)
        self._has_own_sessions = True
        try_to_record(engine, "api")
        return True, seconds_since_heartbeat(engine, "sensor")

    async def metrics(self, request: Request) -> Response:
        """Figures for Prometheus; they come from the database, so every replica tells the same."""
        await self._access.authorise(request, "metrics")
        body = await self._database.ask(self._exposed)
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    def _exposed(self) -> bytes:
        with self._database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            found = [*_figures(connection), *(self._more(connection) if self._more else ())]
        registry = CollectorRegistry()
        registry.register(_Collected(found))
        return cast(bytes, generate_latest(registry))


class _Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _figures(connection: Connection) -> Families:
    yield _counter(
        connection,
        "sync_events",
        "Events by what became of them, and what was received.",
        metrics_queries.COUNT_FINISHED_EVENTS,
        ("entity", "source", "what"),
    )
    yield _gauge(
        connection,
        "sync_events_open",
        "Events that are not finished, by state.",
        metrics_queries.COUNT_ACTIVE_EVENTS,
        ("entity", "source", "state"),
    )
    yield _single(
        "sync_oldest_due_seconds",
        "How long the oldest due work has waited.",
        float(run(connection, ledger_queries.SELECT_OLDEST_DUE)[0].seconds),
    )
    yield _counter(
        connection,
        "sync_pushes",
        "Calls that were to write at the third party, by outcome.",
        metrics_queries.COUNT_PUSHES,
        ("entity", "outcome"),
    )
    yield _latencies(connection)
    yield _gauge(
        connection,
        "sync_breaker_open",
        "1 while no pushes go to the system.",
        metrics_queries.LIST_OPEN_BREAKERS,
        ("system",),
    )
    yield _gauge(
        connection,
        "sync_suspended",
        "1 while pushes to the system are suspended until it is adopted.",
        metrics_queries.LIST_SUSPENDED,
        ("system",),
    )
    yield _gauge(
        connection,
        "sync_groups",
        "Business groups by the verdict of their last validation.",
        metrics_queries.COUNT_VERDICTS,
        ("entity", "verdict"),
    )
    yield _gauge(
        connection,
        "sync_drift",
        "Differences that validation confirmed and that are not known to be gone.",
        metrics_queries.COUNT_OPEN_DRIFT,
        ("entity", "kind"),
    )
    yield _gauge(
        connection,
        "sync_dead_records",
        "Records that are not pushed any more: dead, held (on hold) or "
        "discarded; and changes that died before they were archived (event).",
        dead_queries.COUNT_DEAD,
        ("entity", "state"),
    )
    yield _gauge(connection, "sync_alerts_open", "Alerts that are open.", metrics_queries.COUNT_OPEN_ALERTS, ("kind",))
    yield _gauge(
        connection,
        "sync_silent_seconds",
        "How long ago the sensor and the drain were last heard of.",
        metrics_queries.LIST_HEARTBEAT_AGES,
        ("name",),
    )


def _counter(connection: Connection, name: str, help_text: str, statement: str, labels: tuple[str, ...]) -> Metric:
    family = CounterMetricFamily(name, help_text, labels=labels)
    return _filled(family, connection, statement, labels)


def _gauge(connection: Connection, name: str, help_text: str, statement: str, labels: tuple[str, ...]) -> Metric:
    return _filled(GaugeMetricFamily(name, help_text, labels=labels), connection, statement, labels)


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, connection: Connection, statement: str, labels: tuple[str, ...]
) -> Metric:
    for row in run(connection, statement):
        family.add_metric([str(getattr(row, label)) for label in labels], float(row.n))
    return family


def _single(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)


def _latencies(connection: Connection) -> Metric:
    family = HistogramMetricFamily(
        "sync_event_seconds", "From being received to being acknowledged by the third party.", labels=("entity",)
    )
    classes: dict[str, dict[float, int]] = defaultdict(dict)
    sums: dict[str, float] = defaultdict(float)
    for row in run(connection, metrics_queries.SUM_LATENCIES):
        classes[row.entity][row.most] = row.n
        sums[row.entity] += row.seconds
    for entity, counted in classes.items():
        total, buckets = 0, []
        for most in (*ledger_queries.LATENCY_BUCKETS_SECONDS, float("inf")):
            total += counted.get(float(most), 0)
            buckets.append(("+Inf" if most == float("inf") else str(float(most)), float(total)))
        family.add_metric([entity], buckets, sums[entity])
    return family
