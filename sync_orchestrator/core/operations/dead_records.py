"""Dead records: refused, out of attempts or on hold. What they are, and what an operator does about them.

A record counts whether an event or a full sync brought it. A change that died before the archive had it counts, too:
nothing else shows that it is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from sync_orchestrator.core.db import notify
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.failure_causes import cause_of_error
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.notifications import queries as notifications_queries
from sync_orchestrator.core.operations.queries import dead_records as dead_records_queries
from sync_orchestrator.core.push import queries as push_queries
from sync_orchestrator.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

State = Literal["dead", "on_hold", "discarded"]

DEAD_STATES: tuple[State, ...] = ("dead", "on_hold")
"""``on_hold``: on hold, since the outcome of a create is unknown and cannot be looked up."""

FULL_SYNC = "full sync"

_ALL_STATES: tuple[State, ...] = (*DEAD_STATES, "discarded")
_MAX_ERRORS = 1000
_MAX_CAUSES = 5


@dataclass(frozen=True, slots=True)
class DeadSelection:
    """Which dead records of an entity are meant; None leaves a condition out.

    ``cause``: a part of the error's text, or a cause as lists and alerts show it; letter case does not matter.
    """

    entity: str | None = None
    keys: Sequence[str] | None = None
    group: str | None = None
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class DeadRecord:
    """A record that is out of the push, or a change that died before the archive had it (``kind`` is ``event``).

    ``since``: when the record died or was discarded; when the event was received. ``error``: of a discarded record the
    reason of the discard.
    """

    entity: str
    key: str
    group: str | None
    kind: Literal["record", "event"]
    state: State
    cause: str
    error: str | None
    since: datetime
    attempts: int
    event_seq: int | None

    @classmethod
    def from_row(cls, row: Any) -> DeadRecord:
        """Makes one from a row of the database."""
        cause = row.error or "" if row.state == "discarded" else cause_of_error(row.error, row.key)
        return cls(
            entity=row.entity,
            key=row.key,
            group=row.group_key,
            kind=row.kind,
            state=row.state,
            cause=cause,
            error=row.error,
            since=row.since,
            attempts=row.attempts,
            event_seq=row.seq,
        )

    @property
    def brought_by(self) -> str:
        """What brought the state that could not be mirrored."""
        return FULL_SYNC if self.event_seq is None else f"event {self.event_seq}"


@dataclass(frozen=True, slots=True)
class DeadCounts:
    """Dead records of a business group: ``records`` of all states, those of ``dead`` and ``discarded`` among them.

    ``dead`` counts keys, of records and of changes that died before the archive had them; ``on_hold`` are part of it.
    ``without_group``: keys of the entity whose business group is not known, so that no group's validation counts them.
    """

    dead: int
    on_hold: int
    discarded: int
    records: int
    without_group: int


def count_dead_of_group(connection: Connection, entity: str, group: str) -> DeadCounts:
    """Counts the dead records of one business group."""
    row = run(connection, dead_records_queries.COUNT_DEAD_OF_GROUP, entity=entity, group=group)[0]
    return DeadCounts(
        dead=row.dead,
        on_hold=row.on_hold,
        discarded=row.discarded,
        records=row.records,
        without_group=row.without_group,
    )


def describe_dead_of_entity(connection: Connection, entity: str) -> str | None:
    """Says how many records of an entity are dead now, in any group or none; None where none is."""
    row = run(connection, dead_records_queries.COUNT_DEAD_OF_ENTITY, entity=entity)[0]
    if not row.dead:
        return None
    without = f", {row.without_group} of them without a known business group" if row.without_group else ""
    return f"{entity}: {count_text(row.dead)}{without}, such as {row.example!r}"


def count_text(n: int) -> str:
    """``1 record is dead`` or ``12 records are dead``."""
    return "1 record is dead" if n == 1 else f"{n} records are dead"


def list_dead_records(
    connection: Connection, selection: DeadSelection, limit: int, states: Sequence[State] = DEAD_STATES
) -> list[DeadRecord]:
    """Lists dead records, those that died first first."""
    rows = run(connection, dead_records_queries.LIST_DEAD, **_parameters(selection, states), limit=limit)
    return [DeadRecord.from_row(row) for row in rows]


def redrive_dead_records(engine: Engine, selection: DeadSelection, *, confirmed_absent: bool = False) -> int:
    """Has dead records pushed again with fresh attempts, and their events with them; returns how many keys.

    Records that are named by key are pushed again even if they were discarded. ``confirmed_absent``: an operator has
    seen that the third party does not have them, so those on hold are created. Doing it twice is harmless.
    """
    assert selection.entity is not None
    assert selection.keys is not None or not confirmed_absent
    return in_transaction(
        engine, lambda connection: _redrive(connection, str(selection.entity), selection, confirmed_absent)
    )


def discard_dead_records(engine: Engine, selection: DeadSelection, reason: str) -> int:
    """Gives dead records up, with the reason kept; returns how many keys.

    A discarded record is not pushed until a new revision of it arrives. Its dead events end as discarded. Raises
    NotFound without a reason, and where nothing that is selected is dead.
    """
    assert selection.entity is not None
    if not reason.strip():
        raise NotFound("a discard needs a reason")
    count = in_transaction(engine, lambda connection: _discard(connection, str(selection.entity), selection, reason))
    if not count:
        raise NotFound(
            f"nothing of {selection.entity} that is selected is dead; "
            f"`sync-orchestrator records list {selection.entity} --dead` shows what is"
        )
    return count


def summarize_dead_records(connection: Connection) -> list[dict[str, Any]]:
    """Counts what is dead or discarded by entity, state and cause, the most frequent causes first.

    Causes beyond the first few of an entity and state are counted together.
    """
    causes: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    totals: dict[tuple[str, str], int] = {}
    for row in run(connection, dead_records_queries.COUNT_DEAD_BY_ERROR, limit=_MAX_ERRORS):
        place = row.entity, row.state
        totals[place] = row.total
        cause = row.error or "" if row.state == "discarded" else cause_of_error(row.error, row.key)
        known = causes.setdefault(place, {}).setdefault(cause, {"count": 0, "since": row.since})
        known["count"] += row.n
        known["since"] = min(known["since"], row.since)
    summary: list[dict[str, Any]] = []
    for place, found in sorted(causes.items()):
        entity, state = place
        top = sorted(found.items(), key=lambda item: (-item[1]["count"], item[0]))[:_MAX_CAUSES]
        summary += [
            {
                "entity": entity,
                "state": state,
                "cause": cause,
                "count": counted["count"],
                "since": counted["since"].isoformat(),
            }
            for cause, counted in top
        ]
        if rest := totals[place] - sum(counted["count"] for _, counted in top):
            summary.append({"entity": entity, "state": state, "cause": "other causes", "count": rest, "since": None})
    return summary


def _redrive(connection: Connection, entity: str, selection: DeadSelection, confirmed_absent: bool) -> int:
    from sync_orchestrator.core.push.settlement import Settled, finish_reached  # brings all of a push

    records, unarchived = _locked(connection, selection, _ALL_STATES if selection.keys is not None else DEAD_STATES)
    keys = sorted({*records, *unarchived.values()})
    if not keys:
        return 0
    if confirmed_absent:
        run(connection, dead_records_queries.CONFIRM_ABSENT, entity=entity, keys=records)
    run(connection, push_queries.RELEASE_FROM_HOLD, entity=entity, keys=records)
    run(connection, ledger_queries.REDRIVE_EVENTS, seqs=_seqs(connection, entity, records, unarchived), entity=entity)
    _end_alerts(connection, entity, keys)
    finish_reached(connection, entity, keys, Settled())
    run(connection, notify.NOTIFY_WORK)
    return len(keys)


def _discard(connection: Connection, entity: str, selection: DeadSelection, reason: str) -> int:
    records, unarchived = _locked(connection, selection, DEAD_STATES)
    keys = sorted({*records, *unarchived.values()})
    run(connection, dead_records_queries.DISCARD_RECORDS, entity=entity, keys=records, reason=reason)
    run(connection, ledger_queries.DISCARD_EVENTS, seqs=_seqs(connection, entity, records, unarchived), reason=reason)
    _end_alerts(connection, entity, keys)
    return len(keys)


def _locked(
    connection: Connection, selection: DeadSelection, states: Sequence[State]
) -> tuple[list[str], dict[int, str]]:
    """Keys of selected records, and selected changes that died before they were archived, held until the end."""
    parameters = _parameters(selection, states)
    records = [row.key for row in run(connection, dead_records_queries.LOCK_DEAD_RECORDS, **parameters)]
    return records, {row.seq: row.key for row in run(connection, dead_records_queries.LOCK_DEAD_EVENTS, **parameters)}


def _seqs(connection: Connection, entity: str, records: list[str], unarchived: dict[int, str]) -> list[int]:
    archived = run(connection, dead_records_queries.SELECT_ARCHIVED_EVENTS, entity=entity, keys=records)
    return sorted({*(row.seq for row in archived), *unarchived})


def _end_alerts(connection: Connection, entity: str, keys: Sequence[str]) -> None:
    run(connection, dead_records_queries.RESOLVE_ALERTS_OF_RECORDS, entity=entity, keys=list(keys))
    run(connection, notifications_queries.RESOLVE_DEAD_ALERTS)


def _parameters(selection: DeadSelection, states: Sequence[State]) -> dict[str, Any]:
    return {
        "entity": selection.entity,
        "keys": None if selection.keys is None else list(selection.keys),
        "group": selection.group,
        "states": list(states),
        "cause": None if selection.cause is None else _pattern(selection.cause, selection.entity),
    }


def _pattern(cause: str, entity: str | None) -> str:
    """The pattern of texts with this cause; what a cause leaves out may be anything, and so may the marks of JSON."""
    text = cause.removeprefix(f"{entity}: ") if entity else cause
    escaped = text.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return "%" + escaped.replace("…", "%").replace(": ", "%") + "%"
