"""The notification that wakes drains: a hint, sent in the transaction that makes work due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run

if TYPE_CHECKING:
    from sqlalchemy import Connection

_NOTIFY_WORK = "SELECT pg_notify('sync_work', '')"


def notify_work(connection: Connection) -> None:
    """Wakes the drains once the caller's transaction has committed."""
    run(connection, _NOTIFY_WORK)
