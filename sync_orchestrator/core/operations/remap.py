"""A changed mapping: records whose payload would be another now are out of sync again, by digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row

from sync_orchestrator.core.archive.archived_records import list_digests, read_parts_data
from sync_orchestrator.core.archive.record_resets import step_revisions
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.db.locks import AdvisoryLock, acquire_lock
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.errors import MappingFailed

_PAGE = 2000

_FINGERPRINT = """
INSERT INTO sync.entities (name) VALUES (%(name)s)
ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING fingerprint
"""
_TRY_REFUSED_AGAIN = """
UPDATE sync.records SET stopped = NULL, stopped_at = NULL, attempts = 0, due_at = sync.clock()
WHERE entity = %(name)s AND stopped = 'dead' AND out_of_sync
"""
_REMEMBER = "UPDATE sync.entities SET fingerprint = %(fingerprint)s WHERE name = %(name)s"


def remap(context: Context) -> int:
    """Compares each entity's mapping with the one before; returns how many records it put out of sync."""
    return sum(
        in_transaction(context.engine, partial(_remap_entity, entity=entity)) for entity in context.entities.values()
    )


def _remap_entity(connection: Connection, entity: EntityContext) -> int:
    acquire_lock(connection, AdvisoryLock.REMAP)
    before = run(connection, _FINGERPRINT, name=entity.name)[0].fingerprint
    changed = 0
    if before is not None and before != entity.mapping.fingerprint:
        after = ""
        while rows := list_digests(connection, entity.name, after, _PAGE):
            after = rows[-1].key
            keys = _changed_keys(connection, entity, rows)
            changed += len(keys)
            step_revisions(connection, entity.name, keys)
        run(connection, _TRY_REFUSED_AGAIN, name=entity.name)
    run(connection, _REMEMBER, name=entity.name, fingerprint=entity.mapping.fingerprint)
    return changed


def _changed_keys(connection: Connection, entity: EntityContext, rows: Sequence[Row[Any]]) -> list[str]:
    parts = read_parts_data(connection, entity.name, [row.key for row in rows])
    return [row.key for row in rows if _digest_record(entity, row, parts.get(row.key, {})) != bytes(row.applied_digest)]


def _digest_record(entity: EntityContext, row: Row[Any], parts: Mapping[str, object]) -> bytes | None:
    try:
        return entity.mapping.digest_of_ours(entity.mapping.build_payload(row.key, row.group_key, parts))
    except MappingFailed:
        return None
