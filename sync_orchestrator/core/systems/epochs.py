"""Reads the epochs of source systems. A source that was restored begins a new epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.systems import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection


def read_epochs(connection: Connection) -> dict[str, int]:
    """Returns the present epoch of each known source system, by name."""
    return {row.name: row.epoch for row in run(connection, queries.LIST_EPOCHS)}
