"""Locks of the database: advisory locks, each with a number of its own, and records that are locked in one order."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run

if TYPE_CHECKING:
    from sqlalchemy import Connection


class AdvisoryLock(IntEnum):
    """The advisory locks, by what they serialize. Numbers are never used twice, so running versions agree on them."""

    MIGRATIONS = 7_261_001
    REMAP = 7_261_002
    EMBEDDED_SERVER = 7_261_003
    COMPLETION = 7_261_004
    """By entity. Completing a business group waits for others that complete, and for those that judge events by which
    groups are complete: otherwise the last two would each miss the other, and what is judged would wait forever."""
    DELETION_CAP = 7_261_005
    """By entity."""
    ALERT_DECISION = 7_261_006
    """By kind and subject: decides alone whether an alert is over."""
    ALERT_SENDING = 7_261_007
    TWO_WAY = 7_261_008
    """By the entity that has ``two_way``: links records and merges their shared fields. Taken before any record."""


_LOCK = "SELECT pg_advisory_xact_lock(%(lock)s)"
_LOCK_SUBJECT = "SELECT pg_advisory_xact_lock(hashtextextended(%(subject)s, %(lock)s))"
_SHARE_SUBJECT = "SELECT pg_advisory_xact_lock_shared(hashtextextended(%(subject)s, %(lock)s))"

# An update with a join takes its rows in whatever order the plan has. Updates of several records lock them before that.
LOCK_RECORDS_IN_ORDER = """
SELECT FROM sync.records r JOIN unnest(%(entity)s::text[], %(key)s::text[]) AS v (entity, key) USING (entity, key)
ORDER BY r.entity, r.key FOR UPDATE OF r
"""


def acquire_lock(connection: Connection, number: AdvisoryLock, subject: str | None = None) -> None:
    """Takes an advisory lock, of one subject where one is given, until the end of the caller's transaction."""
    if subject is None:
        run(connection, _LOCK, lock=int(number))
    else:
        run(connection, _LOCK_SUBJECT, lock=int(number), subject=subject)


def share_lock(connection: Connection, number: AdvisoryLock, subject: str) -> None:
    """Takes an advisory lock that its other sharers may hold at the same time, but nobody who takes it alone."""
    run(connection, _SHARE_SUBJECT, lock=int(number), subject=subject)


def lock_records_in_order(connection: Connection, entities: Sequence[str], keys: Sequence[str]) -> None:
    """Locks records in the order of entity and key until the end of the caller's transaction.

    Args:
        connection: A connection within a transaction.
        entities: The entity of each record.
        keys: The key of each record, as many as ``entities``.
    """
    run(connection, LOCK_RECORDS_IN_ORDER, entity=list(entities), key=list(keys))
