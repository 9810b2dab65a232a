"""Recording a batch: the position and the events of one transaction of the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, Engine

from sync_orchestrator.capture.assembly import ChangeBatch, TransactionPiece
from sync_orchestrator.capture.changes import CapturedChange
from sync_orchestrator.capture.parts import entities_by_table
from sync_orchestrator.capture.positions import find_later, has_passed
from sync_orchestrator.core.capture.streams import (
    StreamMove,
    move_stream,
    note_missing_changes,
    note_truncation,
    read_known_versions,
)
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.intake import rejected_messages
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_in

_before_commit = CrashPoint("capture.before_commit")

_MAX_KEY_LENGTH = 200


class ReplacedReader(Exception):
    """Another reader has taken the stream over, or moved it: nothing was recorded."""


@dataclass(slots=True)
class StreamPosition:
    """Where a stream is, and by which lease this process reads it.

    ``stream_id``: tells events of this log from those of another server's, at the same place.
    """

    name: str
    token: int
    lease_seconds: float
    position: str
    partial: str | None
    stream_id: str


def make_stream_id(identity: str) -> str:
    """A short text for what a position belongs to."""
    return hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()


def record_batch(engine: Engine, at: StreamPosition, batch: ChangeBatch, most_bytes: int) -> StreamPosition:
    """Records a batch and moves the position, in one transaction; when it returns both are durable.

    Args:
        engine: The ledger.
        at: Where the stream is.
        batch: What is recorded.
        most_bytes: How much is kept of a row that cannot be used.

    Returns:
        Where the stream is now.

    Raises:
        ReplacedReader: Another reader has the stream.
    """
    position, partial = find_next_place(at, batch)

    def write(connection: Connection) -> None:
        events = sum(len(piece.changes) for piece in batch.pieces)
        move = StreamMove(at.position, position, partial, len(batch.pieces), events)
        number = move_stream(connection, at.name, at.token, at.lease_seconds, move)
        if number is None:
            raise ReplacedReader
        record_in(connection, build_events(connection, at.stream_id, batch.pieces, number - len(batch.pieces)))
        if batch.rejected:
            rejected_messages.keep_rejected_messages(connection, batch.rejected, most_bytes)
        if batch.truncated:
            tables = entities_by_table(batch.truncated)
            entities = sorted({entity for names in tables.values() for entity in names})
            note_truncation(connection, at.name, sorted(tables), entities)
        for missing in batch.missing:
            entities = sorted({entity for table in missing.tables for entity in table.entities})
            note_missing_changes(connection, at.name, missing.reason, entities)
        _before_commit()

    in_transaction(engine, write)
    return StreamPosition(at.name, at.token, at.lease_seconds, position, partial, at.stream_id)


def find_next_place(at: StreamPosition, batch: ChangeBatch) -> tuple[str, str | None]:
    """Where the stream is once a batch is recorded: the position, and how much of the transaction behind it is.

    A position never goes back: a server that was just connected to names places that were passed before, and the slot
    may have been told more. What is recorded of a transaction counts until its end is passed.
    """
    position = find_later(at.position, batch.position)
    if batch.partial is not None or at.partial is None:
        return position, batch.partial
    return position, None if has_passed(position, at.partial.rpartition("/")[0]) else at.partial


def build_events(
    connection: Connection, stream_id: str, pieces: Sequence[TransactionPiece], number: int
) -> list[ChangeEvent]:
    """The change events of pieces, in their order.

    Where versions are the stream's numbers, those of a piece have the next number each: the same key may have another
    state in the next piece of its transaction. ``number``: the stream's before these pieces.

    A delete whose old row told no version gets the newest that is known of its record: where that is the archived one,
    the source is read to settle it. Of a record that is not known it gets the lowest version: a row that comes again
    has one of the source's, which may be older than the commit.

    A row that comes under a key that had a newer version before (restored from a copy, or renamed) leads to a read: the
    log says that it is the later one, and its version says the opposite.
    """
    newest = _read_newest_versions(connection, pieces)
    events = []
    for at, piece in enumerate(pieces, number + 1):
        for change in piece.changes:
            version, known = change.version or 0, newest.get(change.place, 0)
            if change.is_numbered:
                events.append(_build_event(stream_id, piece, change, at))
                continue
            if change.action == "delete":
                version = max(version, known)
            elif change.is_arrival and change.version is not None and version < known:
                change = replace(change, data=None, group=None)
            newest[change.place] = max(version, newest.get(change.place, version))
            events.append(_build_event(stream_id, piece, change, version))
    return events


def _read_newest_versions(
    connection: Connection, pieces: Sequence[TransactionPiece]
) -> dict[tuple[str, str, str], int]:
    """The newest versions known here of the records that are deleted or come, by entity, source and key."""
    wanted = [
        change
        for piece in pieces
        for change in piece.changes
        if (change.action == "delete" or change.is_arrival) and not change.is_numbered
    ]
    newest: dict[tuple[str, str, str], int] = {}
    for source in sorted({change.source for change in wanted}):
        records = [(change.entity, change.key) for change in wanted if change.source == source]
        for (entity, key), version in read_known_versions(connection, source, records).items():
            newest[entity, source, key] = version
    return newest


def _build_event(stream_id: str, piece: TransactionPiece, change: CapturedChange, version: int) -> ChangeEvent:
    key = change.key
    if len(key) > _MAX_KEY_LENGTH:
        key = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    return ChangeEvent(
        change.source,
        f"log/{stream_id}/{piece.place}/{change.entity}/{key}",
        change.entity,
        change.key,
        change.action,
        version,
        change.data,
        change.group,
        "capture",
        is_doubted_delete=change.is_doubted,
    )
