"""Reads drift that validation found: one row for each differing field, and counts over time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.validation import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

COLUMNS = (
    "entity",
    "group",
    "key",
    "kind",
    "status",
    "field",
    "ours",
    "theirs",
    "id_there",
    "found_at",
    "last_seen_at",
    "repaired_at",
)
_BATCH_SIZE = 1000
_MAX_DRIFT_OF_RECORD = 100
_BUCKETS = (
    timedelta(minutes=1),
    timedelta(minutes=10),
    timedelta(hours=1),
    timedelta(hours=6),
    timedelta(days=1),
    timedelta(days=7),
)
_MAX_BUCKETS = 90


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which drift: None is all. ``open``: only what is not known to be repaired."""

    entity: str | None = None
    group: str | None = None
    since: datetime | None = None
    open: bool = False

    def to_parameters(self) -> dict[str, object]:
        """Returns the parameters of the statements that list drift."""
        return {"entity": self.entity, "group": self.group, "since": self.since, "open": self.open}


@dataclass(frozen=True, slots=True)
class OverTime:
    """How much was found in each bucket of time, by kind; ``buckets`` by their beginnings, the empty ones too."""

    width: timedelta
    buckets: list[tuple[datetime, dict[str, int]]]


def read_drift(engine: Engine, chosen: Chosen) -> Iterator[dict[str, object]]:
    """Rows of ``COLUMNS``, the oldest first; a record without fields to tell of is one row. Memory stays flat."""
    after = 0
    while True:
        with engine.begin() as connection:
            rows = run(connection, queries.LIST_DRIFT, after=after, most=_BATCH_SIZE, **chosen.to_parameters())
        for row in rows:
            yield from _split_fields(row)
        if len(rows) < _BATCH_SIZE:
            return
        after = rows[-1].id


def read_newest_drift(engine: Engine, chosen: Chosen, most: int) -> list[dict[str, object]]:
    """The last rows of what ``listed`` shows, in the same order. Only these are read."""
    with engine.begin() as connection:
        rows = run(connection, queries.LIST_NEWEST_DRIFT, most=most, **chosen.to_parameters())
    return [line for row in reversed(rows) for line in _split_fields(row)][-most:]


def list_drift_of_record(connection: Connection, entity: str, key: str) -> list[dict[str, object]]:
    """Returns what validation found of one record, the newest first."""
    rows = run(connection, queries.LIST_DRIFT_OF_RECORD, entity=entity, key=key, most=_MAX_DRIFT_OF_RECORD)
    return [dict(row._mapping) for row in rows]


def _split_fields(row: Row[Any]) -> Iterator[dict[str, object]]:
    """One row of ``COLUMNS`` for each differing field."""
    shared = {
        "entity": row.entity,
        "group": row.group_key,
        "key": row.key,
        "kind": row.kind,
        "status": row.status,
        "id_there": row.external_id,
        "found_at": row.found_at,
        "last_seen_at": row.last_seen_at,
        "repaired_at": row.repaired_at,
    }
    for line in row.sample or [{"field": None, "ours": None, "theirs": None}]:
        yield {name: shared[name] if name in shared else line.get(name) for name in COLUMNS}


def over_time(engine: Engine, chosen: Chosen) -> OverTime:
    """What was found when, in buckets of at most a week, as few as fit a plot."""
    with engine.begin() as connection:
        [span] = run(connection, queries.SELECT_DRIFT_SPAN, **chosen.to_parameters())
        if span.first is None:
            return OverTime(_BUCKETS[0], [])
        whole = span.last - span.first
        width = next((each for each in _BUCKETS if whole / each < _MAX_BUCKETS), _BUCKETS[-1])
        rows = run(connection, queries.COUNT_DRIFT_OVER_TIME, width=width, **chosen.to_parameters())
    counts: dict[datetime, dict[str, int]] = {}
    for row in rows:
        counts.setdefault(row.at, {})[row.kind] = row.n
    first, last = min(counts), max(counts)
    return OverTime(
        width,
        [(at, counts.get(at, {})) for number in range((last - first) // width + 1) for at in [first + number * width]],
    )
