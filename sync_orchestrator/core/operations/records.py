"""One record, as it is asked for: its biography, its payload, its rereading from the sources (rule 7), one more push.

Not here: what a person does with events (``ledger.py``).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.archive import queries as archive_queries
from sync_orchestrator.core.archive.merge import merge, read_sequence, stamp_of
from sync_orchestrator.core.db import notify
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.notifications import queries as notifications_queries
from sync_orchestrator.core.ports import PartRead, SourceSystem
from sync_orchestrator.core.push import queries as push_queries
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.core.validation import queries as validation_queries
from sync_orchestrator.core.values.names import composed
from sync_orchestrator.core.values.storable import sort_out
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH, Change, Stamp
from sync_orchestrator.errors import CallFailed, Failure, NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

    from sync_orchestrator.core.context import Context, EntityContext
    from sync_orchestrator.core.values.mapping import Mapping

Biography = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Archived:
    """A record as the archive has it: what the third party should hold, and when it last acknowledged any of it."""

    payload: dict[str, Any] | None
    """None for a tombstone."""
    group: str | None
    revision: int
    applied_at: datetime | None


def archived(connection: Connection, entity: str, key: str, mapping: Mapping) -> Archived | None:
    """A record's newest state, mapped; None where it is not known, or not all of it. Raises MappingFailed."""
    rows = run(connection, archive_queries.SELECT_RECORD, entity=entity, key=key)
    if not rows or not (rows[0].ready or rows[0].deleted):
        return None
    [row] = rows
    parts = {part.part: part.data for part in run(connection, push_queries.SELECT_PARTS, entity=[entity], key=[key])}
    payload = None if row.deleted else mapping.payload(key, row.group_key, parts)
    return Archived(payload, row.group_key, row.revision, row.applied_at)


def show(connection: Connection, entity: str, key: str) -> Biography:
    """Everything known of a record, each list in order of time.

    Raises NotFound where neither archive nor ledger has it.
    """
    key = composed(key)
    records = run(connection, archive_queries.SELECT_RECORD, entity=entity, key=key)
    events = run(connection, ledger_queries.LIST_EVENTS_OF_RECORD, entity=entity, key=key)
    if not records and not events:
        raise NotFound(f"nothing is known of {entity} '{key}'")
    return {
        "record": dict(records[0]._mapping) if records else None,
        "parts": [
            dict(row._mapping) for row in run(connection, archive_queries.LIST_PARTS_OF_RECORD, entity=entity, key=key)
        ],
        "events": [dict(row._mapping) for row in events],
        "pushes": [
            dict(row._mapping) for row in run(connection, push_queries.LIST_ATTEMPTS_OF_RECORD, entity=entity, key=key)
        ],
        "drift": [
            dict(row._mapping)
            for row in run(
                connection, validation_queries.LIST_DRIFT_OF_RECORD, entity=entity, group=None, key=key, most=100
            )
        ],
    }


async def refresh(context: Context, entity: EntityContext, key: str) -> dict[str, str]:
    """Rereads a record's parts and makes the archive say what they say, whatever version stood there.

    Returns what was found, by part. What a source does not have, asked twice, is taken for deleted. A on hold record
    is due again, its events are tried again, and those held back for a version in the future are superseded. A change
    that arrives during the reading is not overwritten. Raises CallFailed, NotFound.
    """
    key, readable = composed(key), sorted(entity.rules.readable)
    if not readable:
        raise NotFound(f"no source system of {entity.name} can be read by key")
    before, number = await asyncio.to_thread(
        in_transaction, context.engine, lambda connection: (_stamps(connection, entity, key), read_sequence(connection))
    )
    found = await asyncio.gather(*(_read(entity.sources[part], key) for part in readable))
    reads = dict(zip(readable, found, strict=True))
    await asyncio.to_thread(
        in_transaction, context.engine, lambda connection: _take(connection, entity, key, reads, before, number)
    )
    return {part: _told(part, reads) for part in entity.sources}


def push_again(connection: Connection, entity: str, key: str) -> str:
    """Makes a record due for one more push, whatever was acknowledged or refused; returns its business group.

    Raises NotFound where there is nothing to push, or a push is under way.
    """
    key = composed(key)
    rows = run(connection, push_queries.PUSH_AGAIN, entity=entity, key=key)
    if not rows:
        known = run(connection, archive_queries.SELECT_RECORD, entity=entity, key=key)
        why = (
            "is not archived"
            if not known
            else "lacks a required part"
            if not known[0].ready
            else ("is being pushed now")
        )
        raise NotFound(f"{entity} '{key}' {why}")
    _try_again(connection, entity, key, [])
    return str(rows[0].group_key)


async def _read(source: SourceSystem, key: str) -> PartRead | None:
    found = await source.read(key)
    found = await source.read(key) if found is None else found
    _, unusable = sort_out([] if found is None else [found])
    if unusable:
        raise CallFailed(Failure.PERMANENT, str(unusable[0].problem))
    return found


def _told(part: str, reads: dict[str, PartRead | None]) -> str:
    if part not in reads:
        return "cannot be read by key"
    found = reads[part]
    if found is None:
        return "absent"
    return f"version {found.version}, deleted" if found.deleted else f"version {found.version}"


def _stamps(connection: Connection, entity: EntityContext, key: str) -> dict[str, Row[Any]]:
    return {
        row.part: row
        for row in run(connection, archive_queries.SELECT_STAMPS, entity=entity.name, keys=[key], lag=entity.rules.lag)
    }


def _take(
    connection: Connection,
    entity: EntityContext,
    key: str,
    reads: dict[str, PartRead | None],
    before: dict[str, Row[Any]],
    number: int,
) -> None:
    from sync_orchestrator.core.drain.event_batch import change_of_read  # brings all of a push

    run(connection, archive_queries.LOCK_RECORDS, entity=entity.name, keys=[key])
    now = _stamps(connection, entity, key)
    unmoved = {part for part in reads if _stamp(now.get(part)) == _stamp(before.get(part))}
    epochs = {row.name: row.epoch for row in run(connection, systems_queries.LIST_EPOCHS)}
    changes: list[Change] = []
    for part, found in reads.items():
        epoch = epochs.get(part, 0)
        if found is not None:
            changes.append(change_of_read(found, part, epoch, number))
        elif part in now and part in unmoved:
            gone = Stamp(epoch, now[part].version, number, TOMBSTONE_HASH, inferred=True)
            changes.append(Change(key, part, "delete", gone, None))
    run(connection, archive_queries.RESET_STAMP, entity=entity.name, key=key, parts=sorted(unmoved))
    merge(connection, entity.name, changes, entity.rules)
    _try_again(connection, entity.name, key, sorted(reads))


def _stamp(row: Row[Any] | None) -> Stamp | None:
    return None if row is None else stamp_of(row)


def _try_again(connection: Connection, entity: str, key: str, parts: list[str]) -> None:
    run(connection, push_queries.RELEASE_FROM_HOLD, entity=entity, keys=[key])
    run(connection, ledger_queries.FINISH_REREAD, entity=entity, key=key, parts=parts)
    failed = [
        row.seq
        for row in run(connection, ledger_queries.LIST_EVENTS_OF_RECORD, entity=entity, key=key)
        if row.state in ("waiting", "dead")
    ]
    run(connection, ledger_queries.REDRIVE_EVENTS, seqs=failed, entity=entity)
    run(connection, notifications_queries.REMOVE_RECORDS_FROM_ALERTS, entity=entity, keys=[key])
    run(connection, notifications_queries.RESOLVE_DEAD_ALERTS)
    run(connection, notify.NOTIFY_WORK)


def step_epoch(engine: Engine, source: str) -> int:
    """Starts a new count of versions for a source that was restored from a backup; returns its epoch.

    Raises NotFound for an unknown source system.
    """
    with engine.begin() as connection:
        rows = run(connection, systems_queries.STEP_EPOCH, name=source)
    if not rows:
        raise NotFound(f"there is no source system '{source}'")
    return int(rows[0].epoch)
