"""Operations on one record: its history, its payload, reading it again from the sources (rule 7), another push."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sync_orchestrator.core.archive.archived_records import find_record, list_parts_of_record, read_stamps
from sync_orchestrator.core.archive.changes_from_reads import bounds_of, change_of_read
from sync_orchestrator.core.archive.merge import merge
from sync_orchestrator.core.archive.read_sequence import next_read_sequence
from sync_orchestrator.core.archive.record_resets import lock_record, reset_stamps
from sync_orchestrator.core.capture.holds import NotedStreams, StreamHolds
from sync_orchestrator.core.db.notify import notify_work
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.ledger.finishing import finish_reread
from sync_orchestrator.core.ledger.lookups import list_events_of_record
from sync_orchestrator.core.ledger.retrying import redrive_events_of
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.ports import Json, PartRead, SourceSystem
from sync_orchestrator.core.push.attempt_log import list_attempts
from sync_orchestrator.core.push.claims import read_parts
from sync_orchestrator.core.push.hold import release_from_hold, request_push
from sync_orchestrator.core.systems.epochs import list_epochs, step_epoch
from sync_orchestrator.core.validation.drift_log import list_drift_of_record
from sync_orchestrator.core.values.names import to_nfc
from sync_orchestrator.core.values.storable import sort_out
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH, Change, Stamp
from sync_orchestrator.errors import CallFailed, Failure, NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from sync_orchestrator.core.context import Context, EntityContext
    from sync_orchestrator.core.values.mapping import Mapping

Biography = Json


@dataclass(frozen=True, slots=True)
class Archived:
    """A record as the archive has it: what the third party should hold, and when it last acknowledged any of it."""

    payload: Json | None
    """None for a tombstone."""
    group: str | None
    revision: int
    applied_at: datetime | None


def read_archived(connection: Connection, entity: str, key: str, mapping: Mapping) -> Archived | None:
    """A record's newest state, mapped; None where it is not known, or not all of it. Raises MappingFailed."""
    row = find_record(connection, entity, key)
    if row is None or not (row.ready or row.deleted):
        return None
    parts = read_parts(connection, [entity], [key]).get((entity, key), {})
    payload = None if row.deleted else mapping.build_payload(key, row.group_key, parts)
    return Archived(payload, row.group_key, row.revision, row.applied_at)


def read_biography(connection: Connection, entity: str, key: str) -> Biography:
    """Everything known of a record, each list in order of time.

    Raises NotFound where neither archive nor ledger has it.
    """
    key = to_nfc(key)
    record = find_record(connection, entity, key)
    events = list_events_of_record(connection, entity, key)
    if record is None and not events:
        raise NotFound(f"nothing is known of {entity} '{key}'")
    return {
        "record": None if record is None else dict(record._mapping),
        "parts": list_parts_of_record(connection, entity, key),
        "events": [dict(row._mapping) for row in events],
        "pushes": list_attempts(connection, entity, key),
        "drift": list_drift_of_record(connection, entity, key),
    }


async def refresh_record(context: Context, entity: EntityContext, key: str) -> dict[str, str]:
    """Rereads a record's parts and makes the archive say what they say, whatever version stood there.

    Returns what was found, by part. What a source does not have, asked twice, is taken for deleted. A record on hold
    is due again, its events are tried again, and those held back for a version in the future are superseded. A change
    that arrives during the reading is not overwritten. Raises CallFailed, NotFound.
    """
    key, readable = to_nfc(key), sorted(entity.rules.readable)
    if not readable:
        raise NotFound(f"no source system of {entity.name} can be read by key")
    holds = StreamHolds(context.engine, entity)
    before, number, noted = await asyncio.to_thread(
        in_transaction,
        context.engine,
        lambda connection: (
            _read_stamps(connection, entity, key),
            next_read_sequence(connection),
            holds.note_within(connection, readable),
        ),
    )
    found = await asyncio.gather(*(_read_part(entity.sources[part], key) for part in readable))
    reads = dict(zip(readable, found, strict=True))
    await holds.wait(await holds.end_read(noted))
    await asyncio.to_thread(
        in_transaction,
        context.engine,
        lambda connection: _merge_reads(connection, entity, key, reads, before, number, noted),
    )
    return {part: _describe_read(part, reads, entity.rules.numbered) for part in entity.sources}


def push_again(connection: Connection, entity: str, key: str) -> str:
    """Makes a record due for one more push, whatever was acknowledged or refused; returns its business group.

    Raises NotFound where there is nothing to push, or a push is under way.
    """
    key = to_nfc(key)
    group = request_push(connection, entity, key)
    if group is None:
        known = find_record(connection, entity, key)
        why = (
            "is not archived"
            if known is None
            else "lacks a required part"
            if not known.ready
            else ("is being pushed now")
        )
        raise NotFound(f"{entity} '{key}' {why}")
    _try_again(connection, entity, key, [])
    return group


async def _read_part(source: SourceSystem, key: str) -> PartRead | None:
    found = await source.read(key)
    found = await source.read(key) if found is None else found
    _, unusable = sort_out([] if found is None else [found])
    if unusable:
        raise CallFailed(Failure.PERMANENT, str(unusable[0].problem))
    return None if found is not None and found.passed_over else found


def _describe_read(part: str, reads: dict[str, PartRead | None], numbered: Collection[str]) -> str:
    if part not in reads:
        return "cannot be read by key"
    found = reads[part]
    if found is None:
        return "absent"
    if part in numbered:
        return "deleted" if found.deleted else "present"
    return f"version {found.version}, deleted" if found.deleted else f"version {found.version}"


def _read_stamps(connection: Connection, entity: EntityContext, key: str) -> dict[str, Stamp]:
    return {part: stamp for (_, part), stamp in read_stamps(connection, entity.name, [key], entity.rules.lag).items()}


def _merge_reads(
    connection: Connection,
    entity: EntityContext,
    key: str,
    reads: dict[str, PartRead | None],
    before: dict[str, Stamp],
    number: int,
    noted: NotedStreams,
) -> None:
    lock_record(connection, entity.name, key)
    now = _read_stamps(connection, entity, key)
    unmoved = {part for part in reads if now.get(part) == before.get(part)}
    epochs = list_epochs(connection)
    changes: list[Change] = []
    for part, found in reads.items():
        epoch = epochs.get(part, 0)
        if found is not None:
            changes.append(change_of_read(found, part, epoch, number, noted=noted.numbers.get(part)))
        elif part in now and part in unmoved:
            gone = Stamp(epoch, now[part].version, number, TOMBSTONE_HASH, inferred=True)
            bounds = bounds_of(noted.numbers.get(part))
            changes.append(Change(key, part, "delete", gone, None, bounds=bounds))
    reset_stamps(connection, entity.name, key, sorted(unmoved))
    merge(connection, entity.name, changes, entity.rules, two_way=entity.two_way)
    _try_again(connection, entity.name, key, sorted(reads))


def _try_again(connection: Connection, entity: str, key: str, parts: list[str]) -> None:
    release_from_hold(connection, entity, [key])
    finish_reread(connection, entity, key, parts)
    failed = [row.seq for row in list_events_of_record(connection, entity, key) if row.state in ("waiting", "dead")]
    redrive_events_of(connection, seqs=failed, entity=entity)
    alerts.remove_records_from_alerts(connection, entity, [key])
    alerts.resolve_dead_alerts(connection)
    notify_work(connection)


def begin_epoch(engine: Engine, source: str) -> int:
    """Starts a new count of versions for a source that was restored from a backup; returns its epoch.

    Raises NotFound for an unknown source system.
    """
    with engine.begin() as connection:
        epoch = step_epoch(connection, source)
    if epoch is None:
        raise NotFound(f"there is no source system '{source}'")
    return epoch
