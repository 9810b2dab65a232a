"""Counts lost changes over time. Light to import, for commands that only look."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.validation import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row


@dataclass(frozen=True, slots=True)
class LostChangeCount:
    """How many changes of one source were found lost on one day."""

    entity: str
    source: str
    day: date
    count: int

    @classmethod
    def from_row(cls, row: Row[Any]) -> LostChangeCount:
        """Makes one from a row of the database."""
        return cls(entity=row.entity, source=row.source, day=row.day, count=row.n)


def count_lost_changes_by_day(connection: Connection, days: int) -> list[LostChangeCount]:
    """Counts the lost changes of the last days by entity, source and day, the newest day first."""
    return [LostChangeCount.from_row(row) for row in run(connection, queries.SUM_LOST_CHANGES, days=days)]
