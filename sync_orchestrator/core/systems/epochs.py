"""The epochs of source systems: a system that was restored from a backup begins a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.systems import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection


def list_epochs(connection: Connection) -> dict[str, int]:
    """Returns the present epochs, by source system."""
    return {row.name: row.epoch for row in run(connection, queries.LIST_EPOCHS)}


def step_epoch(connection: Connection, source: str) -> int | None:
    """Begins a new epoch of a source system and returns it; None for an unknown source system."""
    rows = run(connection, queries.STEP_EPOCH, name=source)
    return int(rows[0].epoch) if rows else None
