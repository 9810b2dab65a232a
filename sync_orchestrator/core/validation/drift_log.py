"""What validation has found, read back: the whole list, a row a differing field, and how much of it when.

Not here: finding it (``validation.py``), what a person sees of it (``cli/drift_export.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.validation import queries

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
KINDS = ("missing", "stale", "different", "extra", "duplicate", "unmanaged")
_AT_ONCE = 1000
_BUCKETS = (
    timedelta(minutes=1),
    timedelta(minutes=10),
    timedelta(hours=1),
    timedelta(hours=6),
    timedelta(days=1),
    timedelta(days=7),
)
_MOST_BUCKETS = 90


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which drift: None is all. ``open``: only what is not known to be repaired."""

    entity: str | None = None
    group: str | None = None
    since: datetime | None = None
    open: bool = False

    def params(self) -> dict[str, Any]:
        return {"entity": self.entity, "group": self.group, "since": self.since, "open": self.open}


@dataclass(frozen=True, slots=True)
class OverTime:
    """How much was found in each bucket of time, by kind; ``buckets`` by their beginnings, the empty ones too."""

    width: timedelta
    buckets: list[tuple[datetime, dict[str, int]]]


def listed(engine: Engine, chosen: Chosen) -> Iterator[dict[str, Any]]:
    """Rows of ``COLUMNS``, the oldest first; a record without fields to tell of is one row. Memory stays flat."""
    after = 0
    while True:
        with engine.begin() as connection:
            rows = run(connection, queries.LIST_DRIFT, after=after, most=_AT_ONCE, **chosen.params())
        for row in rows:
            told = {
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
                yield {name: told[name] if name in told else line.get(name) for name in COLUMNS}
        if len(rows) < _AT_ONCE:
            return
        after = rows[-1].id


def over_time(engine: Engine, chosen: Chosen) -> OverTime:
    """What was found when, in buckets of at most a week, as few as fit a plot."""
    with engine.begin() as connection:
        [span] = run(connection, queries.SELECT_DRIFT_SPAN, **chosen.params())
        if span.first is None:
            return OverTime(_BUCKETS[0], [])
        whole = span.last - span.first
        width = next((each for each in _BUCKETS if whole / each < _MOST_BUCKETS), _BUCKETS[-1])
        rows = run(connection, queries.COUNT_DRIFT_OVER_TIME, width=width, **chosen.params())
    counts: dict[datetime, dict[str, int]] = {}
    for row in rows:
        counts.setdefault(row.at, {})[row.kind] = row.n
    first, last = min(counts), max(counts)
    return OverTime(
        width,
        [(at, counts.get(at, {})) for number in range((last - first) // width + 1) for at in [first + number * width]],
    )
