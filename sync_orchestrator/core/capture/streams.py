"""Streams of captured changes as the ledger keeps them.

The position moves in the transaction that records what came before it, and only then may the source's log be told.
One reader at a time has a stream, by a lease.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.capture import queries
from sync_orchestrator.core.capture.table_marks import describe_difference
from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.groups.registry import mark_groups_unproven
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

STREAM_LEASE_SECONDS = 15.0
"""A reader that was not heard of for this long is gone, and another one takes over."""

_MAX_ERROR_LENGTH = 500


@dataclass(frozen=True, slots=True)
class CaptureStream:
    """A stream as its reader finds it.

    Attributes:
        identity: What its position belongs to; empty before the stream was first open.
        position: Everything before it is recorded; empty before the stream was first open.
        partial: How much of a large transaction behind the position is recorded; None for nothing of it.
        number: Pieces of transactions so far that brought changes. It never goes back.
        tables: The tables that are captured, each with what it is known by in its database.
        numbered: The entities whose versions are the stream's numbers.
        entities: The entities that its tables tell of.
    """

    name: str
    identity: str
    position: str
    partial: str | None
    number: int
    tables: Mapping[str, str]
    numbered: Sequence[str] = ()
    entities: Sequence[str] = ()

    @classmethod
    def from_row(cls, row: Row[Any]) -> CaptureStream:
        """Makes one from a row of the database."""
        return cls(
            row.name, row.identity, row.position, row.partial, row.number, row.tables, row.numbered, row.entities
        )


@dataclass(frozen=True, slots=True)
class StreamMove:
    """How far a stream moves: from ``before`` to ``position``, by so many pieces of transactions and change events.

    ``partial``: how much of a large transaction behind the position is recorded.
    """

    before: str
    position: str
    partial: str | None
    pieces: int
    events: int


def claim_stream(connection: Connection, name: str, lease_seconds: float) -> int | None:
    """Takes the lease of a stream and returns its token; None where another reader has it."""
    rows = run(connection, queries.CLAIM_STREAM, name=name, lease=lease_seconds)
    return int(rows[0].lease_token) if rows else None


def release_stream(connection: Connection, name: str, token: int) -> None:
    """Lets another reader take over at once."""
    run(connection, queries.RELEASE_STREAM, name=name, token=token)


def renew_stream(
    connection: Connection,
    name: str,
    token: int,
    lease_seconds: float,
    *,
    retained_bytes: int | None = None,
    behind_seconds: float | None = None,
) -> bool:
    """Renews the lease of an open stream and writes its figures; False where another reader has taken over."""
    return bool(
        run(
            connection,
            queries.RENEW_STREAM,
            name=name,
            token=token,
            lease=lease_seconds,
            retained=retained_bytes,
            behind=behind_seconds,
        )
    )


def note_stream_error(connection: Connection, name: str, token: int, error: str, lease_seconds: float) -> float | None:
    """Writes why a stream is not open, and renews the lease.

    Returns:
        For how many seconds it has not been open; None where another reader has taken over.
    """
    rows = run(
        connection,
        queries.NOTE_STREAM_ERROR,
        name=name,
        token=token,
        error=error[:_MAX_ERROR_LENGTH],
        lease=lease_seconds,
    )
    return float(rows[0].age) if rows else None


def read_stream(connection: Connection, name: str) -> CaptureStream | None:
    """Returns a stream; None where it was never open."""
    rows = run(connection, queries.SELECT_STREAM, name=name)
    return CaptureStream.from_row(rows[0]) if rows else None


def list_streams(connection: Connection) -> list[dict[str, object]]:
    """Returns all streams for people, with their figures."""
    return [dict(row._mapping) for row in run(connection, queries.LIST_STREAMS)]


def move_stream(connection: Connection, name: str, token: int, lease_seconds: float, move: StreamMove) -> int | None:
    """Moves the position in the caller's transaction.

    Returns:
        The number of the last piece; None where this reader may not move it: nothing may be recorded then.
    """
    rows = run(
        connection,
        queries.MOVE_STREAM,
        name=name,
        token=token,
        lease=lease_seconds,
        before=move.before,
        position=move.position,
        partial=move.partial,
        pieces=move.pieces,
        events=move.events,
    )
    return int(rows[0].number) if rows else None


def open_stream(
    connection: Connection,
    stream: CaptureStream,
    token: int,
    *,
    entities_by_table: Mapping[str, Sequence[str]],
    lost: str | None = None,
) -> bool:
    """Writes where a stream begins, and which tables it captures from there on.

    Changes of a table that was not captured before may be missing: the business groups of its entities are unproven
    until a full sync that begins later has completed.

    Args:
        connection: A connection within a transaction.
        stream: The stream as it is from now on.
        token: The reader's lease.
        entities_by_table: The entities that have a part in each table.
        lost: Why changes of all tables are missing; None where none are.

    Returns:
        Whether this reader still has the stream.
    """
    before = read_stream(connection, stream.name)
    entities = sorted({name for names in entities_by_table.values() for name in names})
    known = {} if before is None or lost is not None else before.tables
    differences = {
        table: difference
        for table in sorted(entities_by_table)
        if (difference := _describe_table(table, known.get(table), stream.tables.get(table))) is not None
    }
    new = sorted(differences)
    added = sorted(set(entities) - set(() if before is None else before.entities))
    numbered_since = sorted(set(stream.numbered) - set(() if before is None else before.numbered))
    if not run(
        connection,
        queries.OPEN_STREAM,
        name=stream.name,
        token=token,
        identity=stream.identity,
        position=stream.position,
        partial=stream.partial,
        tables=to_jsonb(dict(stream.tables)),
        entities=entities,
        lost=lost,
        anew=bool(new or added) or lost is not None or before is None or before.position != stream.position,
        numbered=sorted(stream.numbered),
        floor=_read_newest_version(connection, stream.name, numbered_since) if numbered_since else 0,
    ):
        return False
    mark_groups_unproven(
        connection, added, f"source {stream.name}: changes of {', '.join(added)} are captured only since then"
    )
    unproven = sorted({entity for table in new for entity in entities_by_table[table]})
    altered = {table: differences[table] for table in new if table in known and table in stream.tables}
    reason = lost or "; ".join(altered.values()) or f"changes of {', '.join(new)} are captured only since then"
    mark_groups_unproven(connection, unproven, f"source {stream.name}: {reason}")
    if lost is not None:
        _alert_of_loss(connection, stream.name, lost, entities)
    elif altered:
        run(connection, queries.NOTE_LOSS, name=stream.name, lost=reason)
        _alert_of_loss(connection, stream.name, reason, unproven)
    return True


def _describe_table(table: str, known: str | None, present: str | None) -> str | None:
    """Why changes of a table may be missing, by what it was known by and is now; None where they are not."""
    if known is None or present is None:
        return None if known == present else f"changes of {table} are captured only since then"
    return describe_difference(table, known, present)


def note_tables(connection: Connection, name: str, token: int, tables: Mapping[str, str]) -> None:
    """Writes what tables are known by, where they changed without a loss."""
    run(connection, queries.NOTE_TABLES, name=name, token=token, tables=to_jsonb(dict(tables)))


def _read_newest_version(connection: Connection, part: str, entities: Sequence[str]) -> int:
    rows = run(connection, queries.SELECT_NEWEST_VERSION, part=part, entities=list(entities))
    return int(rows[0].version)


def _alert_of_loss(connection: Connection, name: str, lost: str, entities: Sequence[str]) -> None:
    unproven = [f"not validated until a full sync: {entity}" for entity in entities]
    title = f"{name}: captured changes are missing"
    alerts.raise_alert(connection, "capture_lost", name, title, examples=[lost, *unproven])


def note_truncation(connection: Connection, name: str, tables: Sequence[str], entities: Sequence[str]) -> None:
    """Alerts of tables that were emptied by TRUNCATE, which names no rows, in the caller's transaction.

    Args:
        connection: A connection within a transaction.
        name: The stream.
        tables: The tables that were emptied.
        entities: The entities that they have a part of; their groups are unproven until a full sync.
    """
    mark_groups_unproven(connection, entities, f"source {name}: {', '.join(tables)} was emptied by TRUNCATE")
    alerts.raise_alert(
        connection,
        "source_truncated",
        name,
        f"{name}: {', '.join(tables)} was emptied by TRUNCATE",
        examples=[f"not validated until a full sync: {entity}" for entity in entities],
    )


def note_missing_changes(connection: Connection, name: str, reason: str, entities: Sequence[str]) -> None:
    """Alerts of changes that the log does not tell, in the caller's transaction; the stream goes on.

    Args:
        connection: A connection within a transaction.
        name: The stream.
        reason: Why they are missing, in a sentence.
        entities: The entities that they may be of; their groups are unproven until a full sync.
    """
    mark_groups_unproven(connection, entities, f"source {name}: {reason}")
    run(connection, queries.NOTE_LOSS, name=name, lost=reason)
    _alert_of_loss(connection, name, reason, entities)


def note_figures(connection: Connection, name: str, problems: Sequence[str]) -> None:
    """Alerts of a stream that is behind, or ends that alert where there are no ``problems``."""
    if problems:
        alerts.raise_alert(
            connection, "capture_behind", name, f"{name}: its captured changes are behind", examples=problems
        )
    else:
        alerts.resolve_alert(connection, "capture_behind", name)


def forget_tables(connection: Connection, name: str, tables: Sequence[str]) -> None:
    """Writes that tables are not captured any more: when they are again, changes between are missing."""
    found = read_stream(connection, name)
    if found is not None and (gone := [table for table in tables if table in found.tables]):
        run(connection, queries.FORGET_TABLES, name=name, gone=gone)


def drop_stream(connection: Connection, name: str) -> bool:
    """Deletes a stream here; False where there is none. Alerts about it end."""
    for kind in ("capture_lost", "capture_down", "capture_behind", "source_truncated"):
        alerts.resolve_alert(connection, kind, name)
    return bool(run(connection, queries.DELETE_STREAM, name=name))


def require_stream(connection: Connection, name: str) -> CaptureStream:
    """Returns a stream. Raises NotFound."""
    found = read_stream(connection, name)
    if found is None:
        raise NotFound(f"there is no stream '{name}'; `sync-orchestrator capture list` shows those that there are")
    return found


def read_known_versions(
    connection: Connection, part: str, records: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], int]:
    """The newest version that is known of a part of each record (entity and key), archived or on its way."""
    rows = run(
        connection,
        queries.SELECT_KNOWN_VERSIONS,
        part=part,
        entities=[entity for entity, _ in records],
        keys=[key for _, key in records],
    )
    return {(row.entity, row.key): row.version for row in rows if row.version is not None}


def describe_outage(name: str, age_seconds: float) -> str:
    """Says for how long a stream has not been open: in seconds below two minutes, in minutes from then on."""
    age = f"{age_seconds:.0f} seconds" if age_seconds < 120 else f"{age_seconds / 60:.0f} minutes"
    return f"{name}: its changes have not been captured for {age}"


def watch_streams(connection: Connection, after_seconds: float) -> None:
    """Alerts of streams that were not open for too long, and ends the alerts of losses that are made up for."""
    for row in run(connection, queries.END_RESTORED_LOSSES):
        for kind in ("capture_lost", "source_truncated"):
            alerts.resolve_alert(connection, kind, row.name)
    for row in run(connection, queries.LIST_STALE_STREAMS, after=after_seconds):
        alerts.raise_alert(
            connection,
            "capture_down",
            row.name,
            describe_outage(row.name, row.age),
            examples=[row.error or "no process reads the stream"],
        )
