"""Reads archived content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from sync_orchestrator.core.archive import queries
from sync_orchestrator.core.db.session import run


def read_parts_data(connection: Connection, entity: str, keys: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the content of the parts of some records, by key and part.

    A key without archived parts is missing from the result.
    """
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    for row in run(connection, queries.SELECT_PARTS_DATA, entity=entity, keys=list(keys)):
        parts.setdefault(row.key, {})[row.part] = row.data
    return parts
