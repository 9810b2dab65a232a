"""Working off a batch of claimed events: into the archive, or on to wait, die or be superseded.

Not here: claiming and looping (``drain.py``), which change wins (``versions.py``).
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Connection

from sync_orchestrator.core.archive import deletion_caps
from sync_orchestrator.core.archive import queries as archive_queries
from sync_orchestrator.core.archive.absent_fields import CheckedSource, lacking, refuse_vanished
from sync_orchestrator.core.archive.merge import Merged, merge, read_sequence, stamp_of
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import force_index_scans, in_transaction, run
from sync_orchestrator.core.failure_causes import cause_of
from sync_orchestrator.core.groups import queries as groups_queries
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.notifications import alerts, outcomes
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.push.settlement import Settled, finish_reached
from sync_orchestrator.core.retry import after_failure
from sync_orchestrator.core.shutdown import ended_in_order
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.core.values.mapping import digest
from sync_orchestrator.core.values.names import name_or_none
from sync_orchestrator.core.values.storable import sort_out
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH, Change, Stamp, Verdict, seconds_too_far
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.expressions.selectors import compiled

_taken = CrashPoint("events.taken")
_read = CrashPoint("events.read")
_before_merge_commit = CrashPoint("events.before_merge_commit")
_merged = CrashPoint("events.merged")

_log = logging.getLogger("sync_orchestrator.events")

NO_RECORD = "its record is not here"
NOT_THERE = "its source has no such record"
BEHIND = "its source still shows an older version than the event names"

_MAX_ROUNDS = 3
_ASK_AGAIN_SECONDS = 3600.0
_MAX_PAUSE_SECONDS = 300.0
_LAG_PAUSE_SECONDS = 60.0
"""The longest pause while a replica may still catch up."""
_GIVE_UP_SECONDS = 86_400.0


@dataclass(slots=True)
class _Fates:
    """What is to be written down for the events of one batch."""

    archived: list[tuple[int, int]] = field(default_factory=list)
    superseded: list[tuple[int, str]] = field(default_factory=list)
    failed: list[tuple[Any, ...]] = field(default_factory=list)
    to_read: list[Any] = field(default_factory=list)
    dead: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    ahead: list[str] = field(default_factory=list)
    behind: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Keys of events that their source has contradicted for too long, by the cause."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What the source systems said of an event's part, and of its owner's where the record is not here."""

    event: Any
    parts: dict[str, PartRead | None]
    failure: CallFailed | None
    read_sequence: int


async def work_off(
    context: Context,
    most: int,
    tokens: set[int],
    *,
    entities: Sequence[str] | None = None,
    alone: threading.Lock | None = None,
) -> tuple[int, Settled]:
    """Takes up to ``most`` due events (of some entities only) and settles each as far as the archive decides it.

    What came with its data is archived by the transaction that takes it; the rest is leased, and read from its source.
    Returns how many were taken and what was finished. Tokens of leases still held are added to ``tokens``. ``alone``
    keeps two takers of one drain apart, which would divide what came together between them.
    """
    names = list(entities or context.entities)

    def work(connection: Connection) -> tuple[int, list[_Batch], Settled]:
        force_index_scans(connection)
        with alone or nullcontext():
            rows = run(connection, ledger_queries.SELECT_DUE_EVENTS, entities=names, most=most)
        result = Settled()
        if not rows:
            return 0, [], result
        _taken()
        token = read_sequence(connection)
        tokens.add(token)
        by_entity: dict[str, list[Any]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: row.seq):
            by_entity[row.entity].append(row)
        batches = [_Batch(context, context.entities[name], events, token) for name, events in sorted(by_entity.items())]
        for batch in batches:
            batch.merge_told(connection, result)
        return len(rows), batches, result

    count, batches, result = await ended_in_order(asyncio.to_thread(in_transaction, context.engine, work))
    if batches:
        _merged()
    for batch in batches:
        await batch.read(result)
    return count, result


class _Batch:
    """The events of one entity that were taken together."""

    def __init__(self, context: Context, entity: EntityContext, events: Sequence[Any], token: int) -> None:
        self._context = context
        self._entity = entity
        self._events = {event.seq: event for event in events}
        self._token = token
        self._holder = None if (hold := context.holder.hold) is None else hold.id
        owner = entity.settings.parts[entity.rules.owner]
        self._group = compiled(owner.group or "@")
        self._lacking: dict[int, tuple[int, frozenset[str]]] = {}
        self._last_resort: set[int] = set()
        self._epochs: dict[str, int] = {}
        self._to_read: list[Any] = []
        self._archived_stamps: dict[tuple[str, str], Stamp] = {}

    async def read(self, result: Settled) -> None:
        """Reads from their sources what could not be decided without."""
        for _ in range(_MAX_ROUNDS):
            if not self._to_read:
                return
            reads = await self._ask(self._to_read)
            _read()
            self._to_read = await asyncio.to_thread(
                in_transaction, self._context.engine, partial(self._merge_read, reads=reads, result=result)
            )

    def merge_told(self, connection: Connection, result: Settled) -> None:
        """Merges what the events told, in the transaction that took them, and leases those that are to be read."""
        fates = self._merge_told(connection, result)
        self._to_read = fates.to_read
        if fates.to_read:
            run(
                connection,
                ledger_queries.CLAIM_EVENTS,
                token=self._token,
                lease=self._context.config.limits.lease,
                holder=self._holder,
                seqs=[event.seq for event in fates.to_read],
            )

    def _merge_told(self, connection: Connection, result: Settled) -> _Fates:
        run(connection, groups_queries.LOCK_JUDGING, entity=self._entity.name)
        fates = _Fates()
        changes = []
        incomplete = self._without_mapped_fields(connection)
        for event in self._events.values():
            if ahead := self._ahead(event.source, event.version, event.now):
                self._waits_for_clock(event, ahead, fates)
                continue
            told = None if event.thin else self._told(event)
            readable = event.source in self._entity.rules.readable
            absent = incomplete.get(event.seq)
            doubted = event.absent_at is not None or _was_inferred(event)  # its source contradicted it before
            if readable and (told is None or absent or self._is_partial(told) or doubted):
                fates.to_read.append(event)
            elif absent is not None:
                self._dies(event, absent, fates)
            elif told is None:
                self._dies(event, f"its source '{event.source}' cannot be read by key: events must carry data", fates)
            else:
                changes.append(told)
        self._judge(connection, changes, fates)
        self._write(connection, fates, result, held=None)
        return fates

    def _without_mapped_fields(self, connection: Connection) -> dict[int, str]:
        """Why some events cannot be taken as they are: fields that the mapping reads vanished from their data (rule
        33).

        By the events' numbers. An absent field is not null: it would wipe a value at the third party.
        """
        problems: dict[int, str] = {}
        for part, source in self._entity.sources.items():
            if not isinstance(source, CheckedSource):
                continue
            some = [
                event
                for event in self._events.values()
                if event.source == part
                and event.data is not None
                and event.action != "delete"
                and lacking(event.data, source.fields)
            ]
            rows = [PartRead(event.key, event.version, event.data) for event in some]
            checked = refuse_vanished(connection, self._entity.name, part, rows, source.fields) if rows else []
            problems |= {event.seq: row.problem for event, row in zip(some, checked, strict=True) if row.problem}
        return problems

    def _ahead(self, part: str, version: int, now: float) -> float:
        settings = self._entity.settings
        return seconds_too_far(version, settings.parts[part].version.kind, now, settings.max_ahead)

    def _waits_for_clock(self, event: Any, seconds: float, fates: _Fates) -> None:
        fates.failed.append(
            (
                event.seq,
                "waiting",
                event.attempts,
                seconds + 1,
                "its version lies too far in the future",
                "clock",
                False,
            )
        )
        fates.ahead.append(event.key)

    def _is_partial(self, told: Change) -> bool:
        """The owner's whole part names the business group: which one it would be depends on what came before."""
        return told.part == self._entity.rules.owner and not told.deleted and told.group is None

    def _told(self, event: Any) -> Change:
        content = TOMBSTONE_HASH if event.action == "delete" else digest(event.data)
        group = event.group_key
        if event.source == self._entity.rules.owner and event.data:
            group = group_text(self._group.search(event.data)) or group
        asked_for = event.action != "delete" or event.origin == "notification"
        stamp = Stamp(event.epoch, event.version, event.read_sequence, content, event.seq, inferred=not asked_for)
        return Change(event.key, event.source, event.action, stamp, event.data, group, event.seq)

    def _judge(self, connection: Connection, changes: Sequence[Change], fates: _Fates) -> None:
        covered: dict[str, bool] | None = None
        changes = self._within_cap(connection, changes, fates)
        for merged in merge(connection, self._entity.name, changes, self._entity.rules):
            if merged.change.seq is None:
                continue
            event = self._events[merged.change.seq]
            if merged.verdict is Verdict.MISSING and not event.ask_source:
                covered = covered if covered is not None else self._covered(connection)
                self._missing(event, covered, fates)
            else:
                self._fate(event, merged, fates)

    def _within_cap(self, connection: Connection, changes: Sequence[Change], fates: _Fates) -> Sequence[Change]:
        """The changes without the deletions that nobody asked for and that exceed the cap: their events wait."""
        inferred = [change for change in changes if change.stamp.inferred]
        if not inferred:
            return changes
        held = deletion_caps.held_back(connection, self._entity, inferred)
        for change in held:
            if change.seq is not None:
                event = self._events[change.seq]
                fates.failed.append(
                    (event.seq, "waiting", event.attempts, _MAX_PAUSE_SECONDS, deletion_caps.HELD, "deletions", False)
                )
        return [change for change in changes if change not in held]

    def _fate(self, event: Any, merged: Merged, fates: _Fates) -> None:
        match merged.verdict:
            case Verdict.ACCEPTED | Verdict.KEPT | Verdict.DUPLICATE:
                assert merged.revision is not None
                lacks = merged.lacks & self._entity.rules.readable
                if lacks and event.seq not in self._lacking:
                    self._lacking[event.seq] = merged.revision, lacks
                    fates.to_read.append(event)
                else:
                    fates.archived.append((event.seq, merged.revision))
            case Verdict.SUPERSEDED:
                fates.superseded.append((event.seq, "a newer version is archived already"))
            case Verdict.BEHIND:
                self._waits_for_source(event, BEHIND, fates)
            case Verdict.TIE | Verdict.FETCH | Verdict.MISSING:
                fates.to_read.append(event)  # without a readable owner it is judged as missing afterwards
            case Verdict.NO_GROUP:
                self._dies(event, f"no business group at '{self._group.expression}' in the part", fates)

    def _missing(self, event: Any, covered: dict[str, bool], fates: _Fates) -> None:
        is_covered = covered.get(event.group_key) if event.group_key else bool(covered) and all(covered.values())
        if not is_covered:
            fates.failed.append((event.seq, "waiting", event.attempts, None, NO_RECORD, "record", False))
        elif self._is_last(event) and event.seq not in self._last_resort:
            self._last_resort.add(event.seq)  # before a person is told, the source itself is asked
            fates.to_read.append(event)
        else:
            self._fails(event, CallFailed(Failure.TRANSIENT, NO_RECORD), fates, awaiting="record")

    def _is_last(self, event: Any) -> bool:
        readable = self._entity.rules.owner in self._entity.rules.readable
        return readable and after_failure(self._entity.retry, event.attempts, Failure.TRANSIENT).wait is None

    def _covered(self, connection: Connection) -> dict[str, bool]:
        rows = run(connection, archive_queries.SELECT_COVERED_GROUPS, entity=self._entity.name)
        return {row.group_key: row.covered for row in rows}

    def _fails(self, event: Any, failure: CallFailed, fates: _Fates, *, awaiting: str | None = None) -> None:
        decision = after_failure(
            self._entity.retry, event.attempts, failure.kind, retry_after=failure.retry_after, draw=random.random()
        )
        state = "dead" if decision.wait is None else "waiting"
        fates.failed.append((event.seq, state, decision.attempts, decision.wait, failure.detail, awaiting, False))
        if state == "dead":
            fates.dead[cause_of(failure, event.key)].append(event.key)

    def _dies(self, event: Any, reason: str, fates: _Fates) -> None:
        self._fails(event, CallFailed(Failure.PERMANENT, reason), fates)

    async def _ask(self, events: Sequence[Any]) -> list[_Read]:
        with self._context.engine.begin() as connection:
            number = read_sequence(connection)
            self._epochs = {row.name: row.epoch for row in run(connection, systems_queries.LIST_EPOCHS)}
        return await asyncio.gather(*(self._ask_one(event, number) for event in events))

    async def _ask_one(self, event: Any, number: int) -> _Read:
        parts: dict[str, PartRead | None] = {}
        owner = self._entity.rules.owner
        fetch = event.ask_source or event.seq in self._last_resort or self._entity.rules.on_missing == "fetch"
        if event.seq in self._lacking:
            asked = self._lacking[event.seq][1]
        else:
            asked = frozenset({event.source, owner} if fetch else {event.source}) & self._entity.rules.readable
        try:
            for part in sorted(asked):
                parts[part] = await self._entity.sources[part].read(event.key)
        except CallFailed as failure:
            return _Read(event, parts, failure, number)
        except Exception as error:  # whatever a library raises is this event's trouble, not the drain's
            _log.exception("reading %s %r from its source failed unexpectedly", self._entity.name, event.key)
            unexpected = CallFailed(Failure.TRANSIENT, f"{type(error).__name__}: {error}"[:300])
            return _Read(event, parts, unexpected, number)
        _, unusable = sort_out(found for found in parts.values() if found is not None)
        problem = CallFailed(Failure.PERMANENT, str(unusable[0].problem)) if unusable else None
        return _Read(event, parts, problem, number)

    def _merge_read(self, connection: Connection, reads: Sequence[_Read], result: Settled) -> list[Any]:
        run(connection, groups_queries.LOCK_JUDGING, entity=self._entity.name)
        fates = _Fates()
        changes: list[Change] = []
        self._archived_stamps = self._stamps_of(connection, [read.event.key for read in reads if _is_absent(read)])
        for read in reads:
            changes += self._read_changes(read, fates)
        self._forget_ids(connection, reads)
        self._judge(connection, changes, fates)
        missing = [event for event in fates.to_read if event.seq not in self._lacking]
        fates.to_read = [event for event in fates.to_read if event.seq in self._lacking]
        covered = self._covered(connection) if missing else {}
        for event in missing:
            self._missing(event, covered, fates)
        self._write(connection, fates, result, held=self._token)
        return fates.to_read

    def _stamps_of(self, connection: Connection, keys: Sequence[str]) -> dict[tuple[str, str], Stamp]:
        """What is archived of some records, by key and part."""
        rows = (
            run(
                connection,
                archive_queries.SELECT_STAMPS,
                entity=self._entity.name,
                keys=sorted(set(keys)),
                lag=self._entity.rules.lag,
            )
            if keys
            else ()
        )
        return {(row.key, row.part): stamp_of(row) for row in rows}

    def _forget_ids(self, connection: Connection, reads: Sequence[_Read]) -> None:
        """A thin event is a request to look: once its source was read, the same notification is a new one (rule 31)."""
        looked = [read.event.seq for read in reads if read.event.thin and read.failure is None]
        if looked:
            run(connection, ledger_queries.DELETE_EVENT_IDS, seqs=looked)

    def _read_changes(self, read: _Read, fates: _Fates) -> list[Change]:
        event = read.event
        if read.failure is not None:
            self._not_read(event, read.failure, fates)
            return []
        ahead = max(
            (self._ahead(part, found.version, event.now) for part, found in read.parts.items() if found), default=0.0
        )
        if ahead:  # the source may be corrected without another notification
            self._waits_for_clock(event, min(ahead, _ASK_AGAIN_SECONDS), fates)
            return []
        if event.seq in self._lacking:
            fates.archived.append((event.seq, self._lacking[event.seq][0]))
            return [self._change_of(found, part, read) for part, found in read.parts.items() if found is not None]
        if _is_absent(read):
            return self._absent(read, fates)
        own = read.parts.get(event.source)
        if own is not None and own.version < event.version:
            if event.ask_source and _contradicted_for(event) >= self._entity.rules.lag:
                fates.superseded.append((event.seq, "its source shows an older version, which a full sync took over"))
            else:
                self._waits_for_source(event, BEHIND, fates)
            return []
        told = [self._told(event)] if own is None else []
        return told + [
            self._change_of(found, part, read, seq=event.seq if part == event.source else None)
            for part, found in read.parts.items()
            if found is not None
        ]

    def _change_of(self, found: PartRead, part: str, read: _Read, *, seq: int | None = None) -> Change:
        """A deletion is asked for where the event says so; one that a flag of the source shows is inferred."""
        asked_for = read.event.action == "delete" and read.event.source == part
        return change_of_read(found, part, self._epochs.get(part, 0), read.read_sequence, seq=seq, asked_for=asked_for)

    def _absent(self, read: _Read, fates: _Fates) -> list[Change]:
        """The source has no such record: that confirms a delete event, and contradicts any other (rule 20)."""
        event = read.event
        if event.action == "delete" and read.parts.get(event.source, _NOT_ASKED) is None:
            gone = Stamp(
                event.epoch, event.version, read.read_sequence, TOMBSTONE_HASH, inferred=event.origin != "notification"
            )
            return [Change(event.key, event.source, "delete", gone, None, None, event.seq)]
        archived = self._archived_stamps.get((event.key, event.source))
        if archived is not None and (archived.epoch, archived.version) > (event.epoch, event.version):
            fates.superseded.append((event.seq, "a newer version is archived already"))
        elif event.ask_source and _contradicted_for(event) >= self._entity.rules.lag:
            fates.superseded.append((event.seq, "its source has no such record, and a full sync did not list it"))
        else:
            self._waits_for_source(event, NOT_THERE, fates)
        return []

    def _waits_for_source(self, event: Any, why: str, fates: _Fates) -> None:
        """The source contradicts the event: replicas lag, tables are reloaded. No attempt is spent (rule 20).

        After ``absent_after`` an operator is alerted, and the event goes on waiting, for a day at most.
        """
        elapsed = _contradicted_for(event)
        lag = self._entity.rules.lag
        if elapsed >= max(_GIVE_UP_SECONDS, lag):
            self._dies(event, why, fates)
            return
        pause = min(_MAX_PAUSE_SECONDS, max(self._entity.retry.first_wait, elapsed))
        if elapsed < lag:
            pause = min(pause, max(self._entity.retry.first_wait, min(_LAG_PAUSE_SECONDS, lag - elapsed)))
        elif not event.ask_source:
            fates.behind[why].append(event.key)
        fates.failed.append((event.seq, "waiting", event.attempts, pause, why, "source", True))

    def _not_read(self, event: Any, failure: CallFailed, fates: _Fates) -> None:
        """A source that cannot be read now costs no attempts: that says nothing about the event."""
        if failure.kind is Failure.PERMANENT:
            self._fails(event, failure, fates)
            return
        waited = max(0.0, event.now - event.received_at.timestamp())
        if waited >= max(_GIVE_UP_SECONDS, self._entity.rules.lag) + _MAX_PAUSE_SECONDS:
            self._dies(event, failure.detail, fates)
            return
        if waited >= self._entity.rules.lag:
            fates.behind[f"'{event.source}' cannot be read"].append(event.key)
        pause = min(_MAX_PAUSE_SECONDS, max(self._entity.retry.first_wait, waited))
        fates.failed.append(
            (
                event.seq,
                "waiting",
                event.attempts,
                max(pause, failure.retry_after or 0.0),
                failure.detail,
                "source",
                False,
            )
        )

    def _write(self, connection: Connection, fates: _Fates, result: Settled, *, held: int | None) -> None:
        """``on_hold``: the token of the events' lease; None in the transaction that took them."""
        name = self._entity.name
        if fates.archived:
            reached = run(
                connection,
                ledger_queries.MARK_ARCHIVED,
                held=held,
                token=self._token,
                lease=self._context.config.limits.lease,
                holder=self._holder,
                seq=[seq for seq, _ in fates.archived],
                revision=[revision for _, revision in fates.archived],
            )
            if reached:
                finish_reached(connection, name, sorted(row.key for row in reached), result)
        if fates.superseded:
            rows = run(
                connection,
                ledger_queries.FINISH_SUPERSEDED,
                held=held,
                seq=[seq for seq, _ in fates.superseded],
                reason=[reason for _, reason in fates.superseded],
            )
            result.superseded += sum(row.n for row in rows)
        if fates.failed:
            columns = list(zip(*fates.failed, strict=True))
            rows = run(
                connection,
                ledger_queries.MARK_FAILED,
                held=held,
                **dict(
                    zip(
                        ("seq", "state", "attempts", "wait", "error", "awaiting", "absent"),
                        map(list, columns),
                        strict=True,
                    )
                ),
            )
            result.failed += len(fates.failed)
            self._tell_of_dead(connection, fates, {row.seq for row in rows})
        for cause, keys in fates.dead.items():
            result.dead += len(keys)
            alerts.tell_of_records(
                connection, "dead", f"{name}: {cause}", f"{name}: changes that could not be mirrored", name, keys
            )
        for cause, keys in fates.behind.items():
            alerts.tell_of_records(
                connection,
                "source_behind",
                f"{name}: {cause}",
                f"{name}: sources do not show what was announced: {cause}",
                name,
                keys,
            )
        if fates.ahead:
            alerts.tell_of_records(
                connection,
                "version_in_future",
                f"{name}: versions in the future",
                f"{name}: versions lie too far in the future",
                name,
                fates.ahead,
            )
        _before_merge_commit()

    def _tell_of_dead(self, connection: Connection, fates: _Fates, ours: set[int]) -> None:
        told = [
            (
                self._events[seq].key,
                {
                    "group": self._events[seq].group_key,
                    "source": self._events[seq].source,
                    "error": error,
                    "attempts": attempts,
                },
            )
            for seq, state, attempts, _, error, *_ in fates.failed
            if state == "dead" and seq in ours
        ]
        outcomes.note(connection, self._entity, "dead", told)


_NOT_ASKED = object()


def _was_inferred(event: Any) -> bool:
    """Whether a check of the sources inferred a deletion, which the source confirms once more."""
    return bool(event.action == "delete" and event.origin == "audit")


def _is_absent(read: _Read) -> bool:
    """Whether the source, or the owner, has no such record."""
    return read.failure is None and None in read.parts.values()


def _contradicted_for(event: Any) -> float:
    """For how many seconds the source has contradicted the event."""
    return 0.0 if event.absent_at is None else max(0.0, event.now - float(event.absent_at.timestamp()))


def change_of_read(
    found: PartRead, part: str, epoch: int, number: int, *, seq: int | None = None, asked_for: bool = False
) -> Change:
    """A part read from its source as a change; a deletion that it shows is inferred unless it was ``asked_for``."""
    content = TOMBSTONE_HASH if found.deleted else digest(found.data)
    stamp = Stamp(epoch, found.version, number, content, inferred=found.deleted and not asked_for)
    return Change(found.key, part, "delete" if found.deleted else "update", stamp, found.data, found.group, seq)


group_text = name_or_none
