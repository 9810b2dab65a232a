"""The ledger from outside: recording change events, counting them, what a person does with them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import orjson
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import dump_json, in_transaction, run
from sync_orchestrator.core.ledger import queries
from sync_orchestrator.core.ports import Json
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.core.version_guard import Action
from sync_orchestrator.exact_json import decimal_fragment

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_before_commit = CrashPoint("record.before_commit")
_after_commit = CrashPoint("record.after_commit")


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """A notification that one part of one record was created, updated or deleted.

    ``data``: the whole part; None where only the key is told and the part is to be read from its source.
    ``version``: microseconds since 1970, or any growing number of that source.
    """

    source: str
    event_id: str
    entity: str
    key: str
    action: Action
    version: int
    data: Json | None = None
    group: str | None = None
    origin: str = "notification"
    trace: str | None = None
    """W3C trace context (``core/tracing.py``), which its push goes on with."""
    read_sequence: int = 0
    """The number of the read that brought it, drawn before that began; 0 for a notification."""
    content_id: bool = False
    """The id is made of the content, so it stands for a change only while that is the record's last one."""
    is_doubted_delete: bool = False
    """A deletion that its source is asked about: a row is gone, and the record may be there all the same."""

    def content_hash(self) -> bytes:
        """What tells a repeated delivery from other content under the same id."""
        return compute_digest([self.entity, self.key, self.action, self.version, self.group, self.data])


@dataclass(slots=True)
class PreparedEvent:
    """A change event as the ledger's statement takes it: it is written once, and holds no tree of values meanwhile."""

    source: str
    event_id: str
    entity: str
    key: str
    content_id: bool
    row: bytes
    """All of it as JSON, the event id first."""

    def with_id(self, event_id: str) -> PreparedEvent:
        """The same under another id. Both are ASCII, as ids made of the content are."""
        rest = self.row[len(_id_in_row(self.event_id)) :]
        return replace(self, event_id=event_id, row=_id_in_row(event_id) + rest)


@dataclass(frozen=True, slots=True)
class Recorded:
    """How many events were recorded, and how many had been recorded before."""

    accepted: int
    duplicates: int


def record_events(engine: Engine, events: Sequence[ChangeEvent]) -> Recorded:
    """Records events, all or none; when it returns they are durable.

    An event that came before under the same source and id is counted and not recorded again.
    """
    return record_each(engine, [events])[0]


def record_each(engine: Engine, batches: Sequence[Sequence[ChangeEvent]]) -> list[Recorded]:
    """Records several batches in one transaction, as ``record`` does, and says what each of them brought."""

    def record_batches(connection: Connection) -> list[Recorded]:
        new = _record_new(connection, batches)
        _before_commit()
        return _by_batch(new, batches)

    recorded = in_transaction(engine, record_batches)
    _after_commit()
    return recorded


def prepare_event(event: ChangeEvent) -> PreparedEvent:
    """Writes an event as JSON, and computes the hash of its content: nearly all the work of recording it here."""
    row = _build_row(event)
    try:
        written = orjson.dumps(row, default=decimal_fragment)
    except TypeError:  # whole numbers of more than 64 bits
        written = _bytes_of(row)
    return PreparedEvent(event.source, event.event_id, event.entity, event.key, event.content_id, written)


async def record_on(connection: AsyncConnection[Any], batches: Sequence[Sequence[PreparedEvent]]) -> list[Recorded]:
    """The same on a connection that commits each statement: one round trip to the database, and no thread."""
    if made := _content_ids(batches):
        await connection.execute(queries.DELETE_CONTENT_IDS, made)
    cursor = await connection.execute(queries.RECORD_EVENTS, {"events": _encode_batches(batches)}, prepare=True)
    row = await cursor.fetchone()
    assert row is not None
    _after_commit()
    return _by_batch(row[0], batches)


def record_in(connection: Connection, events: Sequence[ChangeEvent]) -> Recorded:
    """Records events in the caller's transaction."""
    accepted = len(_record_new(connection, [events]))
    return Recorded(accepted, len(events) - accepted)


def _by_batch(new: Sequence[int], batches: Sequence[Sequence[ChangeEvent | PreparedEvent]]) -> list[Recorded]:
    ends = list(accumulate(len(events) for events in batches))
    accepted = Counter(bisect_left(ends, place) for place in new)
    return [Recorded(accepted[at], len(events) - accepted[at]) for at, events in enumerate(batches)]


def _record_new(connection: Connection, batches: Sequence[Sequence[ChangeEvent]]) -> Sequence[int]:
    """Records events; returns the places, from 1, of those that are new."""
    if not any(batches):
        return []
    if made := _content_ids(batches):
        run(connection, queries.DELETE_CONTENT_IDS, **made)
    offered = _encode_batches([[prepare_event(event) for event in events] for events in batches])
    new: Sequence[int] = run(connection, queries.RECORD_EVENTS, events=offered)[0].accepted
    return new


def _content_ids(batches: Sequence[Sequence[ChangeEvent | PreparedEvent]]) -> dict[str, list[str]]:
    """The sources and ids of the events whose ids are made of their content; empty where there are none."""
    made = [event for events in batches for event in events if event.content_id]
    return {"sources": [event.source for event in made], "ids": [event.event_id for event in made]} if made else {}


def _encode_batches(batches: Sequence[Sequence[PreparedEvent]]) -> Jsonb:
    events = [event for events in batches for event in events]
    apart = _separate_reused_ids(events) if any(event.content_id for event in events) else events
    return Jsonb(b"[" + b",".join([event.row for event in apart]) + b"]", dumps=_as_it_is)


def _as_it_is(written: bytes) -> bytes:
    return written


def _id_in_row(event_id: str) -> bytes:
    return b'{"event_id":' + _bytes_of(event_id)


def _bytes_of(value: object) -> bytes:
    written = dump_json(value)
    return written.encode() if isinstance(written, str) else written


def _separate_reused_ids(events: Sequence[PreparedEvent]) -> list[PreparedEvent]:
    """Events of one batch whose content comes again after another one of the record get another id (rule 31)."""
    last: dict[tuple[str, str, str], str] = {}
    seen: Counter[tuple[str, str]] = Counter()
    apart = []
    for event in events:
        record, made = (event.source, event.entity, event.key), (event.source, event.event_id)
        repeats = event.content_id and last.get(record) == event.event_id
        if event.content_id and not repeats:
            seen[made] += 1
        last[record] = event.event_id
        apart.append(event.with_id(f"{event.event_id}#{seen[made]}") if event.content_id and seen[made] > 1 else event)
    return apart


def _build_row(event: ChangeEvent) -> dict[str, object]:
    """As the statement takes it: one document costs less than an array for each column."""
    return {
        "event_id": event.event_id,
        "source": event.source,
        "entity": event.entity,
        "key": event.key,
        "group_key": event.group,
        "action": event.action,
        "version": event.version,
        "thin": event.data is None and (event.action != "delete" or event.is_doubted_delete),
        "data": event.data,
        "content_hash": event.content_hash().hex(),
        "origin": event.origin,
        "trace": event.trace,
        "read_sequence": event.read_sequence,
    }
