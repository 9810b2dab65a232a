"""The numbers and the clock that order reads of source systems, on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sync_orchestrator.core.archive import queries
from sync_orchestrator.core.db.session import run

if TYPE_CHECKING:
    from sqlalchemy import Connection


def next_read_sequence(connection: Connection) -> int:
    """Returns a number for a read that begins now: later reads get larger ones, on every machine."""
    return int(run(connection, queries.NEXT_READ_SEQUENCE)[0][0])


def next_read_sequence_and_clock(connection: Connection) -> tuple[int, float]:
    """Returns a number for a read that begins now, and the database's clock in seconds since 1970."""
    row = run(connection, queries.NEXT_READ_SEQUENCE_AND_CLOCK)[0]
    return int(row.number), float(row.now)


def read_clock(connection: Connection) -> float:
    """Returns the database's clock, in seconds since 1970."""
    return float(run(connection, queries.SELECT_CLOCK)[0][0])
