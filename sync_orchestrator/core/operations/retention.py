"""What is over is forgotten after a while: finished events, calls, ids of events, findings, alerts that ended.

Nothing that is open, waiting or dead is touched, and the totals stay: they are tallies. Harmless to repeat and to kill.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import psycopg.errors
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.operations.queries import retention as retention_queries

if TYPE_CHECKING:
    from sync_orchestrator.config import RetentionSettings

_MAX_ROWS = 5_000
_MAX_BATCHES = 2_000


def delete_expired(engine: Engine, settings: RetentionSettings) -> Mapping[str, int]:
    """Forgets what is older than configured; returns how many rows, or partitions, of each."""
    return {
        "history_partitions": _drop_partitions(engine, "event_history", settings.history_days),
        "attempts_partitions": _drop_partitions(engine, "push_attempts", settings.history_days),
        "history": _delete_rows(engine, retention_queries.DELETE_HISTORY, settings.history_days),
        "attempts": _delete_rows(engine, retention_queries.DELETE_ATTEMPTS, settings.history_days),
        "event_ids": _delete_rows(engine, retention_queries.DELETE_EVENT_IDS, settings.event_ids_days),
        "validations": _delete_rows(engine, retention_queries.DELETE_VALIDATIONS, settings.findings_days),
        "drift": _delete_rows(engine, retention_queries.DELETE_DRIFT, settings.findings_days),
        "alerts": _delete_rows(engine, retention_queries.DELETE_ALERTS, settings.findings_days),
    }


def _drop_partitions(engine: Engine, parent: str, days: int | None) -> int:
    """Partitions that somebody uses right now wait for the next round."""
    if days is None:
        return 0
    with engine.begin() as connection:
        names = [row.name for row in run(connection, retention_queries.LIST_OLD_PARTITIONS, parent=parent, days=days)]
    return sum(_drop_partition(engine, name) for name in names)


def _drop_partition(engine: Engine, name: str) -> bool:
    try:
        with engine.begin() as connection:
            run(connection, "SET LOCAL lock_timeout = '3s'")
            run(connection, f'DROP TABLE sync."{name}"')
    except OperationalError as error:
        if isinstance(error.orig, psycopg.errors.LockNotAvailable):
            return False
        raise
    return True


def _delete_rows(engine: Engine, statement: str, days: int | None) -> int:
    if days is None:
        return 0

    def delete_some(connection: Connection) -> int:
        return len(run(connection, statement, days=days, most=_MAX_ROWS))

    total = 0
    for _ in range(_MAX_BATCHES):
        count = in_transaction(engine, delete_some)
        total += count
        if count < _MAX_ROWS:
            break
    return total
