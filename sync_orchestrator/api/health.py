"""``/healthz``, ``/readyz`` and ``/metrics``: for those who operate the service."""

from __future__ import annotations

import asyncio
import math
import time
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
from sync_orchestrator.api.database import ApiDatabase
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.core.db import connections
from sync_orchestrator.core.ledger.probe import try_to_record
from sync_orchestrator.core.operations.metrics import read_figures, read_latencies
from sync_orchestrator.core.systems.heartbeats import seconds_since_heartbeat
from sync_orchestrator.core.systems.worker_presence import read_workers
from sync_orchestrator.database.migrate import is_current

READY_SECONDS = 5.0
"""The longest that ``/readyz`` waits for the database."""

_REST_SECONDS = 1.0
_SENSOR_SILENT_SECONDS = 120.0
_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}

Families = Iterator[Metric]
Collect = Callable[[Connection], Families]
"""Further figures, such as those of the proxy."""


class Health:
    """The open paths for probes and metrics."""

    def __init__(self, database: ApiDatabase, access: Access, more: Collect | None = None) -> None:
        self._database = database
        self._access = access
        self._more = more
        self._looking: asyncio.Task[dict[str, str] | None] | None = None
        self._looked = 0.0
        self._has_own_sessions = False

    def build_routes(self) -> list[Route]:
        """The routes of health checks and metrics."""
        return [Route("/healthz", self.healthz), Route("/readyz", self.readyz), Route("/metrics", self.show_metrics)]

    async def healthz(self, request: Request) -> Response:
        """Green while the process answers."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Green while events can be recorded, which is tried.

        A silent sensor or worker is reported and does not make it red: events are recorded all the same.
        """
        with self._database.refuse_on_failure():
            async with asyncio.timeout(READY_SECONDS):
                others = await asyncio.shield(self._share_check())
        if others is None:
            raise Refused(503, "The database has not the shape that this version needs; start it with this version.")
        return JSONResponse({"status": "ready", "database": "ok", "migrations": "ok", **others})

    def _share_check(self) -> asyncio.Task[dict[str, str] | None]:
        """One look at a time, and a second of rest between two, however many ask."""
        if self._looking is None or (self._looking.done() and time.monotonic() - self._looked >= _REST_SECONDS):
            self._looking = asyncio.create_task(asyncio.to_thread(self._check_readiness))
            self._looking.add_done_callback(self._note_check_end)
        return self._looking

    def _note_check_end(self, looked: asyncio.Task[dict[str, str] | None]) -> None:
        self._looked = time.monotonic()
        if not looked.cancelled():
            looked.exception()  # those who asked may have gone away

    def _check_readiness(self) -> dict[str, str] | None:
        """Whether the sensor and the worker are ``ok`` or ``silent``; None where the database has another shape."""
        engine = self._database.engine
        if not is_current(engine):
            return None
        if not self._has_own_sessions and connections.seems_pooled(engine) and connections.shares_sessions(engine):
            raise Refused(503, connections.POOLER)
        self._has_own_sessions = True
        try_to_record(engine, "api")
        sensor_seconds = seconds_since_heartbeat(engine, "sensor")
        with engine.begin() as connection:
            has_worker = read_workers(connection).count > 0
        hears_sensor = sensor_seconds is not None and sensor_seconds < _SENSOR_SILENT_SECONDS
        return {"sensor": "ok" if hears_sensor else "silent", "worker": "ok" if has_worker else "silent"}

    async def show_metrics(self, request: Request) -> Response:
        """Figures for Prometheus; they come from the database, so every replica tells the same."""
        await self._access.authorise(request, "metrics")
        body = await self._database.run_in_thread(self._expose_metrics)
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    def _expose_metrics(self) -> bytes:
        with self._database.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            found = [*_build_families(connection), *(self._more(connection) if self._more else ())]
        registry = CollectorRegistry()
        registry.register(_Collected(found))
        return cast(bytes, generate_latest(registry))


class _Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _build_families(connection: Connection) -> Families:
    for figure in read_figures(connection):
        family = _FAMILIES[figure.kind](figure.name, figure.help_text, labels=figure.labels)
        for labels, value in figure.values.items():
            family.add_metric(labels, value)
        yield family
    family = HistogramMetricFamily(
        "sync_event_seconds", "From being received to being acknowledged by the third party.", labels=("entity",)
    )
    for latency in read_latencies(connection):
        buckets = [("+Inf" if math.isinf(bound) else str(bound), float(count)) for bound, count in latency.buckets]
        family.add_metric([latency.entity], buckets, latency.sum_seconds)
    yield family
