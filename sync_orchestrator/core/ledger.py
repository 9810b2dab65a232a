"""The ledger from outside: recording change events, counting them, what a person does with them.

Not here: working events off (``drain.py``), the moves between states (``states.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import Connection, Engine

from sync_orchestrator.core import alerts
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.errors import NotFound
from sync_orchestrator.core.mapping import digest
from sync_orchestrator.core.settle import Settled, finish_reached
from sync_orchestrator.core.sql import in_transaction, run
from sync_orchestrator.core.statements import alerts as alert_statements
from sync_orchestrator.core.statements import ledger as statements
from sync_orchestrator.core.statements import push as push_statements
from sync_orchestrator.core.states import ACTIVE, FINISHED
from sync_orchestrator.core.versions import Action

_before_commit = CrashPoint("record.before_commit")
_after_commit = CrashPoint("record.after_commit")


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """A notification that one part of one record was created, updated or deleted.

    ``data``: the whole part; None where only the key is told and the part is to be read from its source.
    ``version``: microseconds since 1970, or any growing number of that source.
    """

    source: str
    event_id: str
    entity: str
    key: str
    action: Action
    version: int
    data: dict[str, Any] | None = None
    group: str | None = None
    origin: str = "notification"

    def content_hash(self) -> bytes:
        """What tells a repeated delivery from other content under the same id."""
        return digest([self.entity, self.key, self.action, self.version, self.group, self.data])


@dataclass(frozen=True, slots=True)
class Recorded:
    accepted: int
    duplicates: int


def record(engine: Engine, events: Sequence[ChangeEvent]) -> Recorded:
    """Records events, all or none; when it returns they are durable.

    An event that came before under the same source and id is counted and not recorded again.
    """

    def work(connection: Connection) -> Recorded:
        recorded = record_in(connection, events)
        _before_commit()
        return recorded

    recorded = in_transaction(engine, work)
    _after_commit()
    return recorded


def record_in(connection: Connection, events: Sequence[ChangeEvent]) -> Recorded:
    """Records events in the caller's transaction."""
    if not events:
        return Recorded(0, 0)
    row = run(
        connection, statements.RECORD,
        source=[event.source for event in events],
        event_id=[event.event_id for event in events],
        entity=[event.entity for event in events],
        key=[event.key for event in events],
        group_key=[event.group for event in events],
        action=[event.action for event in events],
        version=[event.version for event in events],
        thin=[event.data is None and event.action != "delete" for event in events],
        data=[None if event.data is None else Jsonb(event.data) for event in events],
        content_hash=[event.content_hash() for event in events],
        origin=[event.origin for event in events],
    )[0]
    if row.accepted:
        run(connection, statements.NOTIFY)
    return Recorded(row.accepted, row.duplicates)


@dataclass(frozen=True, slots=True)
class Conservation:
    """What was received and what became of it, by state, in one snapshot."""

    received: int
    duplicates: int
    states: dict[str, int]

    @property
    def balanced(self) -> bool:
        """received = pending + leased + waiting + done + superseded + dead + discarded."""
        return self.received == sum(self.states.values())


def conservation(connection: Connection, entity: str | None = None) -> Conservation:
    """Counts all events by state; history that was dropped stays counted."""
    counts: dict[str, int] = {}
    for row in run(connection, statements.CONSERVATION):
        if entity is None or row.entity == entity:
            counts[row.what] = counts.get(row.what, 0) + row.n
    return Conservation(
        counts.get("received", 0), counts.get("duplicate", 0),
        {str(state): counts.get(str(state), 0) for state in (*ACTIVE, *FINISHED)},
    )


def redrive(engine: Engine, seqs: Sequence[int] | None = None, entity: str | None = None) -> int:
    """Puts dead and waiting events back to pending with fresh attempts; returns how many. Doing it twice is harmless.

    ``seqs`` None: all of the entity (None: of every entity).
    """

    def work(connection: Connection) -> int:
        rows = run(connection, statements.REDRIVE, seqs=None if seqs is None else list(seqs), entity=entity)
        by_entity: dict[str, list[str]] = {}
        for row in rows:
            by_entity.setdefault(row.entity, []).append(row.key)
        for name, keys in sorted(by_entity.items()):
            run(connection, push_statements.UNPARK, entity=name, keys=keys)
            run(connection, alert_statements.FORGET_RECORDS, entity=name, keys=keys)
            finish_reached(connection, name, keys, Settled())
        run(connection, statements.NOTIFY)
        return len(rows)

    return in_transaction(engine, work)


def discard(engine: Engine, seqs: Sequence[int], reason: str) -> int:
    """Ends dead events for good, with the reason kept; returns how many.

    Raises NotFound where none of them is dead.
    """
    if not reason.strip():
        raise NotFound("a discard needs a reason")

    def work(connection: Connection) -> int:
        rows = run(connection, statements.DISCARD, seqs=list(seqs), reason=reason)
        run(connection, alert_statements.RESOLVE_DEAD)
        return sum(row.n for row in rows)

    count = in_transaction(engine, work)
    if not count:
        raise NotFound("none of these events is dead; `sync-orchestrator events list --state dead` shows which are")
    return count


def check_conservation(connection: Connection) -> Conservation:
    """Counts, and alerts where it does not add up."""
    totals = conservation(connection)
    if totals.balanced:
        alerts.resolve(connection, "conservation")
    else:
        alerts.tell(
            connection, "conservation", "events",
            f"{totals.received} events received, {sum(totals.states.values())} accounted for",
        )
    return totals
