"""Monthly partitions of the history of events and of push attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection


def ensure_partitions(connection: Connection) -> None:
    """Creates the partitions of this month and of the two months ahead, where they do not exist yet."""
    run(connection, queries.ENSURE_PARTITIONS)
