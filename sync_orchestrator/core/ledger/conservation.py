"""Counts all change events by state: what was received must equal the sum of what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger import queries
from sync_orchestrator.core.ledger.states import ACTIVE, FINISHED

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class Conservation:
    """What was received and what became of it, by state, in one snapshot."""

    received: int
    duplicates: int
    states: dict[str, int]

    @property
    def balanced(self) -> bool:
        """Received = pending + leased + waiting + done + superseded + dead + discarded."""
        return self.received == sum(self.states.values())


def count_conservation(connection: Connection, entity: str | None = None) -> Conservation:
    """Counts all events by state; history that was dropped stays counted."""
    counts: dict[str, int] = {}
    for row in run(connection, queries.COUNT_CONSERVATION):
        if entity is None or row.entity == entity:
            counts[row.what] = counts.get(row.what, 0) + row.n
    return Conservation(
        counts.get("received", 0),
        counts.get("duplicate", 0),
        {str(state): counts.get(str(state), 0) for state in (*ACTIVE, *FINISHED)},
    )
