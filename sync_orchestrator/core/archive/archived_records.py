"""Reads records, the stamps and contents of their parts, and totals from the archive."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.archive import queries
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.version_guard import Stamp

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row


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


def stamp_of(row: Row[Any]) -> Stamp:
    """Returns the stamp of an archived part, from a row that has its columns."""
    return Stamp(row.epoch, row.version, row.read_sequence, bytes(row.content_hash), row.seq, row.inferred)


def read_parts_data(
    connection: Connection, entity: str, keys: Sequence[str]
) -> dict[str, dict[str, dict[str, object]]]:
    """Returns the content of the parts of some records, by key and part.

    A key without archived parts is missing from the result.
    """
    parts: dict[str, dict[str, dict[str, object]]] = {}
    for row in run(connection, queries.SELECT_PARTS_DATA, entity=entity, keys=list(keys)):
        parts.setdefault(row.key, {})[row.part] = row.data
    return parts


def find_record(connection: Connection, entity: str, key: str) -> Row[Any] | None:
    """Returns the row of a record; None where the archive does not know it."""
    rows = run(connection, queries.SELECT_RECORD, entity=entity, key=key)
    return rows[0] if rows else None


def list_parts_of_record(connection: Connection, entity: str, key: str) -> list[dict[str, object]]:
    """Returns what each source says of a record."""
    return [dict(row._mapping) for row in run(connection, queries.LIST_PARTS_OF_RECORD, entity=entity, key=key)]


def count_records(connection: Connection) -> Sequence[Row[Any]]:
    """Returns, for each entity, how many of its records are archived, in sync, dead and so on."""
    return run(connection, queries.COUNT_RECORDS)


def sum_entity_totals(connection: Connection, entity: str) -> Row[Any]:
    """Returns the totals of an entity over all its business groups."""
    return run(connection, queries.SUM_ENTITY_TOTALS, entity=entity)[0]


def sum_group_totals(connection: Connection, entity: str, group: str) -> Row[Any]:
    """Returns the totals of one business group."""
    return run(connection, queries.SUM_GROUP_TOTALS, entity=entity, group=group)[0]


def list_digests(connection: Connection, entity: str, after: str, limit: int) -> Sequence[Row[Any]]:
    """Returns the digests of the acknowledged payloads of records, by key, beginning behind ``after``."""
    return run(connection, queries.SELECT_DIGESTS, entity=entity, after=after, most=limit)
