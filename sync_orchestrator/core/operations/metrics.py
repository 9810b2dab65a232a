"""The figures of ``/metrics``: which there are, with their labels, and their values from the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.lookups import seconds_oldest_is_due
from sync_orchestrator.core.ledger.states import LATENCY_BUCKETS_SECONDS
from sync_orchestrator.core.operations.captured_streams import StreamFigure, list_behind_seconds, list_retained_bytes
from sync_orchestrator.core.operations.queries import metrics as queries
from sync_orchestrator.core.push.dead_records import count_dead_by_state

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row


Query: TypeAlias = "str | Callable[[Connection], Sequence[Row[Any] | StreamFigure]]"
"""A query, or a function of the package that owns it; its rows have the labels and the count ``n``."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric with its values by the values of its labels."""

    name: str
    kind: Literal["counter", "gauge"]
    help_text: str
    labels: tuple[str, ...] = ()
    values: dict[tuple[str, ...], float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Latency:
    """The latencies of an entity's events: cumulative counts by upper bound in seconds, and the sum in seconds."""

    entity: str
    buckets: list[tuple[float, int]]
    sum_seconds: float


_COUNTERS: tuple[tuple[str, str, Query, tuple[str, ...]], ...] = (
    (
        "sync_events",
        "Events by what became of them, and what was received.",
        queries.COUNT_FINISHED_EVENTS,
        ("entity", "source", "outcome"),
    ),
    (
        "sync_pushes",
        "Calls that were to write at the third party, by outcome.",
        queries.COUNT_PUSHES,
        ("entity", "outcome"),
    ),
)
_GAUGES: tuple[tuple[str, str, Query, tuple[str, ...]], ...] = (
    (
        "sync_events_open",
        "Events that are not finished, by state.",
        queries.COUNT_ACTIVE_EVENTS,
        ("entity", "source", "state"),
    ),
    ("sync_breaker_open", "1 while no pushes go to the system.", queries.LIST_OPEN_BREAKERS, ("system",)),
    (
        "sync_suspended",
        "1 while pushes to the system are suspended until it is adopted.",
        queries.LIST_SUSPENDED,
        ("system",),
    ),
    (
        "sync_groups",
        "Business groups by the verdict of their last validation.",
        queries.COUNT_VERDICTS,
        ("entity", "verdict"),
    ),
    (
        "sync_drift",
        "Differences that validation confirmed and that are not known to be gone.",
        queries.COUNT_OPEN_DRIFT,
        ("entity", "kind"),
    ),
    (
        "sync_dead_records",
        "Records that are not pushed any more: dead, on hold or discarded; and changes that died before they were "
        "archived (event).",
        count_dead_by_state,
        ("entity", "state"),
    ),
    ("sync_alerts_open", "Alerts that are open.", queries.COUNT_OPEN_ALERTS, ("kind",)),
    (
        "sync_silent_seconds",
        "How long ago the sensor, the drain and the worker were last heard of, and the round of each minute was done.",
        queries.LIST_HEARTBEAT_AGES,
        ("name",),
    ),
    (
        "sync_worker_task_silent_seconds",
        "How long ago a task of a worker last succeeded, such as the sending of alerts.",
        queries.LIST_WORKER_TASK_AGES,
        ("task",),
    ),
    (
        "sync_capture_behind_seconds",
        "For how long more has been changed at the source than was captured.",
        list_behind_seconds,
        ("source",),
    ),
    (
        "sync_capture_retained_bytes",
        "How much of its log the source keeps for the stream of captured changes.",
        list_retained_bytes,
        ("source",),
    ),
)


def read_figures(connection: Connection) -> Iterator[Figure]:
    """Reads all counters and gauges."""
    for name, help_text, query, labels in _COUNTERS:
        yield Figure(name, "counter", help_text, labels, _read_values(connection, query, labels))
    for name, help_text, query, labels in _GAUGES:
        yield Figure(name, "gauge", help_text, labels, _read_values(connection, query, labels))
    oldest = seconds_oldest_is_due(connection)
    yield Figure("sync_oldest_due_seconds", "gauge", "How long the oldest due work has waited.", (), {(): oldest})


def read_latencies(connection: Connection) -> Iterator[Latency]:
    """Reads, by entity, how long events took from being received to being acknowledged by the third party."""
    counts: dict[str, dict[float, int]] = defaultdict(dict)
    sums: dict[str, float] = defaultdict(float)
    for row in run(connection, queries.SUM_LATENCIES):
        counts[row.entity][row.most] = row.n
        sums[row.entity] += row.seconds
    for entity, counted in counts.items():
        total, buckets = 0, []
        for bound in (*LATENCY_BUCKETS_SECONDS, float("inf")):
            total += counted.get(float(bound), 0)
            buckets.append((float(bound), total))
        yield Latency(entity, buckets, sums[entity])


def _read_values(connection: Connection, query: Query, labels: tuple[str, ...]) -> dict[tuple[str, ...], float]:
    rows = run(connection, query) if isinstance(query, str) else query(connection)
    return {tuple(str(getattr(row, label)) for label in labels): float(row.n) for row in rows}
