"""Reads of the archive, and what numbers and orders the reads of source systems that it takes in."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.archive import queries
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.version_guard import Stamp

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


def read_stamps(
    connection: Connection, entity: str, keys: Collection[str], lag_seconds: float
) -> dict[tuple[str, str], Stamp]:
    """Returns the stamps of the archived parts of some records, by key and part."""
    if not keys:
        return {}
    rows = run(connection, queries.SELECT_STAMPS, entity=entity, keys=sorted(set(keys)), lag=lag_seconds)
    return {(row.key, row.part): stamp_of(row) for row in rows}


def read_covered_groups(connection: Connection, entity: str) -> dict[str, bool]:
    """Returns the business groups of an entity, and whether each has had its first full sync."""
    return {row.group_key: row.covered for row in run(connection, queries.SELECT_COVERED_GROUPS, entity=entity)}


def stamp_of(row: Any) -> Stamp:
    """Returns the stamp of an archived part, from a row that has its columns."""
    return Stamp(row.epoch, row.version, row.read_sequence, bytes(row.content_hash), row.seq, row.inferred)
