"""Dead records: refused, out of attempts or on hold. Which they are, by cause.

A record counts whether an event or a full sync brought it. A change that died before the archive had it counts, too:
nothing else shows that it is missing. What an operator does about them: ``core/operations/dead_records.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.failure_causes import cause_of_error
from sync_orchestrator.core.push import dead_record_queries

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row


State = Literal["dead", "on_hold", "discarded"]


DEAD_STATES: tuple[State, ...] = ("dead", "on_hold")
"""``on_hold``: on hold, since the outcome of a create is unknown and cannot be looked up."""


FULL_SYNC = "full sync"


ALL_STATES: tuple[State, ...] = (*DEAD_STATES, "discarded")


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
    def from_row(cls, row: Row[Any]) -> DeadRecord:
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
    row = run(connection, dead_record_queries.COUNT_DEAD_OF_GROUP, entity=entity, group=group)[0]
    return DeadCounts(
        dead=row.dead,
        on_hold=row.on_hold,
        discarded=row.discarded,
        records=row.records,
        without_group=row.without_group,
    )


def describe_dead_of_entity(connection: Connection, entity: str) -> str | None:
    """Says how many records of an entity are dead now, in any group or none; None where none is."""
    row = run(connection, dead_record_queries.COUNT_DEAD_OF_ENTITY, entity=entity)[0]
    if not row.dead:
        return None
    without = f", {row.without_group} of them without a known business group" if row.without_group else ""
    return f"{entity}: {describe_count(row.dead)}{without}, such as {row.example!r}"


def describe_count(n: int) -> str:
    """``1 record is dead`` or ``12 records are dead``."""
    return "1 record is dead" if n == 1 else f"{n} records are dead"


def list_dead_records(
    connection: Connection, selection: DeadSelection, limit: int, states: Sequence[State] = DEAD_STATES
) -> list[DeadRecord]:
    """Lists dead records, those that died first first."""
    rows = run(connection, dead_record_queries.LIST_DEAD, **_build_parameters(selection, states), limit=limit)
    return [DeadRecord.from_row(row) for row in rows]


def summarize_dead_records(connection: Connection) -> list[dict[str, object]]:
    """Counts what is dead or discarded by entity, state and cause, the most frequent causes first.

    Causes beyond the first few of an entity and state are counted together.
    """
    causes: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    totals: dict[tuple[str, str], int] = {}
    for row in run(connection, dead_record_queries.COUNT_DEAD_BY_ERROR, limit=_MAX_ERRORS):
        place = row.entity, row.state
        totals[place] = row.total
        cause = row.error or "" if row.state == "discarded" else cause_of_error(row.error, row.key)
        known = causes.setdefault(place, {}).setdefault(cause, {"count": 0, "since": row.since})
        known["count"] += row.n
        known["since"] = min(known["since"], row.since)
    summary: list[dict[str, object]] = []
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


def _build_parameters(selection: DeadSelection, states: Sequence[State]) -> dict[str, object]:
    return {
        "entity": selection.entity,
        "keys": None if selection.keys is None else list(selection.keys),
        "group": selection.group,
        "states": list(states),
        "cause": None if selection.cause is None else _build_pattern(selection.cause, selection.entity),
    }


def _build_pattern(cause: str, entity: str | None) -> str:
    """The pattern of texts with this cause; what a cause leaves out may be anything, and so may the marks of JSON."""
    text = cause.removeprefix(f"{entity}: ") if entity else cause
    escaped = text.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return "%" + escaped.replace("…", "%").replace(": ", "%") + "%"


def lock_dead(
    connection: Connection, selection: DeadSelection, states: Sequence[State]
) -> tuple[list[str], dict[int, str]]:
    """Locks what is dead until the end of the transaction.

    Returns:
        The keys of the selected records, and the keys by number of the selected changes that died before the archive
        had them.
    """
    parameters = _build_parameters(selection, states)
    records = [row.key for row in run(connection, dead_record_queries.LOCK_DEAD_RECORDS, **parameters)]
    return records, {row.seq: row.key for row in run(connection, dead_record_queries.LOCK_DEAD_EVENTS, **parameters)}


def find_archived_events(connection: Connection, entity: str, keys: Sequence[str]) -> list[int]:
    """Returns the numbers of the dead events of records whose changes the archive has."""
    rows = run(connection, dead_record_queries.SELECT_ARCHIVED_EVENTS, entity=entity, keys=list(keys))
    return [row.seq for row in rows]


def confirm_absent(connection: Connection, entity: str, keys: Sequence[str]) -> None:
    """Notes that the third party does not have records on hold, as an operator has seen: they are created again."""
    run(connection, dead_record_queries.CONFIRM_ABSENT, entity=entity, keys=list(keys))


def discard_records(connection: Connection, entity: str, keys: Sequence[str], reason: str) -> None:
    """Gives dead records up, with the reason kept."""
    run(connection, dead_record_queries.DISCARD_RECORDS, entity=entity, keys=list(keys), reason=reason)


def discard_records_without_events(connection: Connection, entity: str, keys: Sequence[str], reason: str) -> None:
    """Gives up the dead records among these that have no dead event any more."""
    run(connection, dead_record_queries.DISCARD_RECORDS_WITH_EVENTS, entity=entity, keys=sorted(keys), reason=reason)


def resolve_alerts_of_records(connection: Connection, entity: str, keys: Sequence[str]) -> None:
    """Takes records out of all alerts about single records."""
    run(connection, dead_record_queries.RESOLVE_ALERTS_OF_RECORDS, entity=entity, keys=list(keys))


def count_dead_by_state(connection: Connection) -> Sequence[Row[Any]]:
    """Returns rows of entity, state and count ``n`` of what is dead or discarded."""
    return run(connection, dead_record_queries.COUNT_DEAD)
