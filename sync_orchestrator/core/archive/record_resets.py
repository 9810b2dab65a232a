"""Resets of archived records that no change event brings: for a reread of the sources, or another mapping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sync_orchestrator.core.archive import queries
from sync_orchestrator.core.db.session import run

if TYPE_CHECKING:
    from sqlalchemy import Connection


def lock_record(connection: Connection, entity: str, key: str) -> None:
    """Locks an archived record until the end of the caller's transaction."""
    run(connection, queries.LOCK_RECORDS, entity=entity, keys=[key])


def reset_stamps(connection: Connection, entity: str, key: str, parts: Sequence[str]) -> None:
    """Has parts of a record lose to whatever is merged next, whatever its version."""
    run(connection, queries.RESET_STAMP, entity=entity, key=key, parts=sorted(parts))


def step_revisions(connection: Connection, entity: str, keys: Sequence[str]) -> None:
    """Puts records out of sync whose content is what it was."""
    run(connection, queries.STEP_REVISION, entity=entity, keys=list(keys))
