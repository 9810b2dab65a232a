"""Since when a whole entity is known to be in sync."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.validation import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection


def find_in_sync_since(connection: Connection, entity: str, age: timedelta) -> datetime | None:
    """When the validations began that found every business group of an entity in sync.

    Args:
        connection: A connection to the database.
        entity: The entity.
        age: How old a validation may be.

    Returns:
        The time of the oldest of the groups' latest validations. None if a group that had a full sync was last found
        in drift, could not be validated, or was validated longer ago; and if there is no such group.
    """
    row = run(connection, queries.SELECT_IN_SYNC_SINCE, entity=entity, seconds=age.total_seconds())[0]
    return row.since if row.all_in_sync else None
