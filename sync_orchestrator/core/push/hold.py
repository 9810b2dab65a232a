"""Lets records that are on hold, dead or waiting for a retry be pushed again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.finishing import redrive_archived_events
from sync_orchestrator.core.push import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection


def release_from_hold(connection: Connection, entity: str, keys: Sequence[str]) -> None:
    """Makes records that are out of sync due again with fresh attempts, whatever they were refused for."""
    run(connection, queries.RELEASE_FROM_HOLD, entity=entity, keys=list(keys))


def release_group_from_hold(connection: Connection, entity: str, group: str) -> int:
    """Makes dead and failed records of a business group due again, and their events; returns how many records.

    Records that somebody is pushing are left alone (rule 26).
    """
    released = [row.key for row in run(connection, queries.RELEASE_GROUP_FROM_HOLD, entity=entity, group=group)]
    if released:
        redrive_archived_events(connection, entity, released)
    return len(released)


def request_push(connection: Connection, entity: str, key: str) -> str | None:
    """Makes a record due for one more push, in sync or not; returns its business group.

    Returns None where the record cannot be pushed: it is unknown or incomplete, or a push of it is under way.
    """
    rows = run(connection, queries.PUSH_AGAIN, entity=entity, key=key)
    return str(rows[0].group_key) if rows else None


def retry_refused_records(connection: Connection, entities: Sequence[str], since: datetime) -> None:
    """Retries refused records once when what was under way beside them has been acknowledged (rule 26).

    Args:
        connection: A connection within a transaction.
        entities: The entities of the third party.
        since: When the oldest of the acknowledged records was changed.
    """
    keys: dict[str, list[str]] = defaultdict(list)
    for row in run(connection, queries.RETRY_REFUSED, entities=list(entities), since=since):
        keys[row.entity].append(row.key)
    for entity, retried in sorted(keys.items()):
        redrive_archived_events(connection, entity, retried)


def release_records_of_system(connection: Connection, system: str) -> None:
    """Gives back to records the attempts that the failures spent by which a third party's breaker opened."""
    run(connection, queries.RELEASE_RECORDS_OF_SYSTEM, system=system)
