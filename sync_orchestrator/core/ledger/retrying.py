"""Makes failed change events due again, in the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row


def retry_failed_of_group(connection: Connection, entity: str, group: str, *, all_covered: bool) -> int:
    """Makes the waiting and dead events of a business group due whose change is not in the archive.

    Args:
        connection: The transaction that completes the group.
        entity: The entity of the group.
        group: The business group whose full sync completes.
        all_covered: Whether every known group of the entity has completed a full sync. If so, events without a
            business group become due, too.

    Returns:
        The number of events that are tried again.
    """
    return len(run(connection, queries.RETRY_FAILED_OF_GROUP, entity=entity, group=group, all_covered=all_covered))


def redrive_events_of(
    connection: Connection, *, seqs: Collection[int] | None = None, entity: str | None = None
) -> Sequence[Row[Any]]:
    """Makes dead and waiting events pending again with fresh attempts; None chooses all. Returns their rows."""
    return run(connection, queries.REDRIVE_EVENTS, seqs=None if seqs is None else list(seqs), entity=entity)
