"""Reads events back: lists, single events, the history of a record, the age of the oldest due work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row


def list_events(
    connection: Connection, *, state: str | None, entity: str | None, key: str | None, limit: int
) -> Sequence[Row[Any]]:
    """Returns events that are not finished, newest first; None chooses all."""
    return run(connection, queries.LIST_EVENTS, state=state, entity=entity, key=key, most=limit)


def find_event(connection: Connection, seq: int) -> Row[Any] | None:
    """Returns an event by its number, finished or not."""
    rows = run(connection, queries.SELECT_EVENT, seq=seq)
    return rows[0] if rows else None


def find_events_by_id(connection: Connection, sources: Sequence[str], event_id: str) -> Sequence[Row[Any]]:
    """Returns the events with this id of the given source systems."""
    return run(connection, queries.SELECT_EVENT_BY_ID, sources=list(sources), id=event_id)


def list_events_of_record(connection: Connection, entity: str, key: str) -> Sequence[Row[Any]]:
    """Returns all events of a record that are kept, oldest first."""
    return run(connection, queries.LIST_EVENTS_OF_RECORD, entity=entity, key=key)


def count_failed_of_entity(connection: Connection, entity: str, group: str | None) -> int:
    """Returns the number of dead events of an entity, or of one of its business groups."""
    return int(run(connection, queries.COUNT_FAILED_OF_ENTITY, entity=entity, group=group)[0].n)


def seconds_oldest_is_due(connection: Connection, *, without: Sequence[str] = ()) -> float:
    """Returns how long the oldest due work has waited, in seconds; ``without`` leaves out records of these entities."""
    if without:
        return float(run(connection, queries.SELECT_OLDEST_DUE_OF_UNSUSPENDED, suspended=list(without))[0].seconds)
    return float(run(connection, queries.SELECT_OLDEST_DUE)[0].seconds)
