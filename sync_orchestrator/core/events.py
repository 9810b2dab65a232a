"""Working off a batch of claimed events: into the archive, or on to wait, die or be superseded.

Not here: claiming and looping (``drain.py``), which change wins (``versions.py``).
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Connection

from sync_orchestrator.core import alerts, outcomes
from sync_orchestrator.core.archive import Merged, merge, ticket
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.errors import CallFailed, Failure
from sync_orchestrator.core.expressions import compiled
from sync_orchestrator.core.mapping import digest
from sync_orchestrator.core.names import name_or_none
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.retry import after_failure
from sync_orchestrator.core.settle import Settled, finish_reached
from sync_orchestrator.core.sql import in_transaction, one_by_one, run
from sync_orchestrator.core.statements import archive as archive_statements
from sync_orchestrator.core.statements import full_sync as full_sync_statements
from sync_orchestrator.core.statements import ledger as statements
from sync_orchestrator.core.storable import sort_out
from sync_orchestrator.core.versions import TOMBSTONE_HASH, Change, Stamp, Verdict, seconds_too_far

_taken = CrashPoint("events.taken")
_read = CrashPoint("events.read")
_before_merge_commit = CrashPoint("events.before_merge_commit")
_merged = CrashPoint("events.merged")

NO_RECORD = "its record is not here"

_MOST_ROUNDS = 3
_ASK_AGAIN = 3600.0


@dataclass(slots=True)
class _Fates:
    """What is to be written down for the events of one batch."""

    archived: list[tuple[int, int]] = field(default_factory=list)
    superseded: list[tuple[int, str]] = field(default_factory=list)
    failed: list[tuple[Any, ...]] = field(default_factory=list)
    to_read: list[Any] = field(default_factory=list)
    dead: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    ahead: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Read:
    """What the source systems said of an event's part, and of its owner's where the record is not here."""

    event: Any
    parts: dict[str, PartRead | None]
    failure: CallFailed | None
    ticket: int


async def work_off(
    context: Context, most: int, tokens: set[int], *, entities: Sequence[str] | None = None,
    alone: threading.Lock | None = None,
) -> tuple[int, Settled]:
    """Takes up to ``most`` due events (of some entities only) and settles each as far as the archive decides it.

    What came with its data is archived by the transaction that takes it; the rest is leased, and read from its source.
    Returns how many were taken and what was finished. Tokens of leases still held are added to ``tokens``. ``alone``
    keeps two takers of one drain apart, which would divide what came together between them.
    """
    names = list(entities or context.entities)

    def work(connection: Connection) -> tuple[int, list[_Batch], Settled]:
        one_by_one(connection)
        with alone or nullcontext():
            rows = run(connection, statements.TAKE, entities=names, most=most)
        result = Settled()
        if not rows:
            return 0, [], result
        _taken()
        token = ticket(connection)
        tokens.add(token)
        by_entity: dict[str, list[Any]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: row.seq):
            by_entity[row.entity].append(row)
        batches = [_Batch(context, context.entities[name], events, token) for name, events in sorted(by_entity.items())]
        for batch in batches:
            batch.merge_told(connection, result)
        return len(rows), batches, result

    count, batches, result = await asyncio.to_thread(in_transaction, context.engine, work)
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
        owner = entity.settings.parts[entity.rules.owner]
        self._group = compiled(owner.group or "@")
        self._lacking: dict[int, tuple[int, frozenset[str]]] = {}
        self._last_resort: set[int] = set()
        self._epochs: dict[str, int] = {}
        self._to_read: list[Any] = []

    async def read(self, result: Settled) -> None:
        """Reads from their sources what could not be decided without."""
        for _ in range(_MOST_ROUNDS):
            if not self._to_read:
                return
            reads = await self._ask(self._to_read)
            _read()
            self._to_read = await asyncio.to_thread(
                in_transaction, self._context.engine, partial(self._merge_read, reads=reads, result=result))

    def merge_told(self, connection: Connection, result: Settled) -> None:
        """Merges what the events told, in the transaction that took them, and leases those that are to be read."""
        fates = self._merge_told(connection, result)
        self._to_read = fates.to_read
        if fates.to_read:
            run(connection, statements.LEASE, token=self._token, lease=self._context.config.limits.lease,
                seqs=[event.seq for event in fates.to_read])

    def _merge_told(self, connection: Connection, result: Settled) -> _Fates:
        run(connection, full_sync_statements.JUDGING, entity=self._entity.name)
        fates = _Fates()
        changes = []
        for event in self._events.values():
            if ahead := self._ahead(event.source, event.version, event.now):
                self._waits_for_clock(event, ahead, fates)
                continue
            told = None if event.thin else self._told(event)
            readable = event.source in self._entity.rules.readable
            if readable and (told is None or self._is_partial(told)):
                fates.to_read.append(event)
            elif told is None:
                self._dies(event, f"its source '{event.source}' cannot be read by key: events must carry data", fates)
            else:
                changes.append(told)
        self._judge(connection, changes, fates)
        self._write(connection, fates, result, held=None)
        return fates

    def _ahead(self, part: str, version: int, now: float) -> float:
        settings = self._entity.settings
        return seconds_too_far(version, settings.parts[part].version.kind, now, settings.max_ahead)

    def _waits_for_clock(self, event: Any, seconds: float, fates: _Fates) -> None:
        fates.failed.append((event.seq, "waiting", event.attempts, seconds + 1,
                             "its version lies too far in the future", "clock", False))
        fates.ahead.append(event.key)

    def _is_partial(self, told: Change) -> bool:
        """The owner's whole part names the business group: which one it would be depends on what came before."""
        return told.part == self._entity.rules.owner and not told.deleted and told.group is None

    def _told(self, event: Any) -> Change:
        content = TOMBSTONE_HASH if event.action == "delete" else digest(event.data)
        group = event.group_key
        if event.source == self._entity.rules.owner and event.data:
            group = group_text(self._group.search(event.data)) or group
        return Change(event.key, event.source, event.action, Stamp(event.epoch, event.version, 0, content),
                      event.data, group, event.seq)

    def _judge(self, connection: Connection, changes: Sequence[Change], fates: _Fates) -> None:
        covered: dict[str, bool] | None = None
        for merged in merge(connection, self._entity.name, changes, self._entity.rules):
            if merged.change.seq is None:
                continue
            event = self._events[merged.change.seq]
            if merged.verdict is Verdict.MISSING and not event.ask_source:
                covered = covered if covered is not None else self._covered(connection)
                self._missing(event, covered, fates)
            else:
                self._fate(event, merged, fates)

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
        rows = run(connection, archive_statements.COVERED, entity=self._entity.name)
        return {row.group_key: row.covered for row in rows}

    def _fails(self, event: Any, failure: CallFailed, fates: _Fates, *, awaiting: str | None = None) -> None:
        decision = after_failure(self._entity.retry, event.attempts, failure.kind, retry_after=failure.retry_after,
                                 draw=random.random())
        state = "dead" if decision.wait is None else "waiting"
        fates.failed.append((event.seq, state, decision.attempts, decision.wait, failure.detail, awaiting, False))
        if state == "dead":
            fates.dead[failure.detail.split(":")[0][:80]].append(event.key)

    def _dies(self, event: Any, reason: str, fates: _Fates) -> None:
        self._fails(event, CallFailed(Failure.PERMANENT, reason), fates)

    async def _ask(self, events: Sequence[Any]) -> list[_Read]:
        with self._context.engine.begin() as connection:
            number = ticket(connection)
            self._epochs = {row.name: row.epoch for row in run(connection, full_sync_statements.EPOCHS)}
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
        _, unusable = sort_out(found for found in parts.values() if found is not None)
        problem = CallFailed(Failure.PERMANENT, str(unusable[0].problem)) if unusable else None
        return _Read(event, parts, problem, number)

    def _merge_read(self, connection: Connection, reads: Sequence[_Read], result: Settled) -> list[Any]:
        run(connection, full_sync_statements.JUDGING, entity=self._entity.name)
        fates = _Fates()
        changes: list[Change] = []
        for read in reads:
            changes += self._read_changes(read, fates)
        self._judge(connection, changes, fates)
        missing = [event for event in fates.to_read if event.seq not in self._lacking]
        fates.to_read = [event for event in fates.to_read if event.seq in self._lacking]
        covered = self._covered(connection) if missing else {}
        for event in missing:
            self._missing(event, covered, fates)
        self._write(connection, fates, result, held=self._token)
        return fates.to_read

    def _read_changes(self, read: _Read, fates: _Fates) -> list[Change]:
        event, owner = read.event, self._entity.rules.owner
        if read.failure is not None:
            self._fails(event, read.failure, fates)
            return []
        ahead = max((self._ahead(part, found.version, event.now) for part, found in read.parts.items() if found),
                    default=0.0)
        if ahead:  # the source may be mended without another word
            self._waits_for_clock(event, min(ahead, _ASK_AGAIN), fates)
            return []
        if event.seq in self._lacking:
            fates.archived.append((event.seq, self._lacking[event.seq][0]))
            return [self._change_of(found, part, read) for part, found in read.parts.items() if found is not None]
        if any(found is None for part, found in read.parts.items() if part in (event.source, owner)):
            return self._absent(read, fates)
        own = read.parts.get(event.source)
        if own is not None and own.version < event.version:
            self._fails(event, CallFailed(Failure.TRANSIENT, "its source still shows an older version"), fates)
            return []
        told = [self._told(event)] if own is None else []
        return told + [
            self._change_of(found, part, read, seq=event.seq if part == event.source else None)
            for part, found in read.parts.items() if found is not None
        ]

    def _change_of(self, found: PartRead, part: str, read: _Read, *, seq: int | None = None) -> Change:
        return change_of_read(found, part, self._epochs.get(part, 0), read.ticket, seq=seq)

    def _absent(self, read: _Read, fates: _Fates) -> list[Change]:
        """Its source has no such record: believed when it says so a second time."""
        event, owner = read.event, self._entity.rules.owner
        if event.absent_at is None:
            wait = self._entity.retry.first_wait
            fates.failed.append((event.seq, "waiting", event.attempts, wait, "its source has no such record",
                                 None, True))
            return []
        if owner in read.parts and read.parts[owner] is None and event.action != "delete":
            fates.superseded.append((event.seq, "the source confirms that there is no such record"))
            if event.source != owner:
                return []
        part = event.source
        gone = Stamp(event.epoch, event.version, read.ticket, TOMBSTONE_HASH)
        seq = None if any(seq == event.seq for seq, _ in fates.superseded) else event.seq
        return [Change(event.key, part, "delete", gone, None, None, seq)]

    def _write(self, connection: Connection, fates: _Fates, result: Settled, *, held: int | None) -> None:
        """``held``: the token of the events' lease; None in the transaction that took them."""
        name = self._entity.name
        if fates.archived:
            reached = run(
                connection, statements.ARCHIVED, held=held, token=self._token, lease=self._context.config.limits.lease,
                seq=[seq for seq, _ in fates.archived], revision=[revision for _, revision in fates.archived])
            if reached:
                finish_reached(connection, name, sorted(row.key for row in reached), result)
        if fates.superseded:
            rows = run(connection, statements.SUPERSEDED, held=held,
                       seq=[seq for seq, _ in fates.superseded], reason=[reason for _, reason in fates.superseded])
            result.superseded += sum(row.n for row in rows)
        if fates.failed:
            columns = list(zip(*fates.failed, strict=True))
            rows = run(connection, statements.FAILED, held=held,
                       **dict(zip(("seq", "state", "attempts", "wait", "error", "awaiting", "absent"),
                                  map(list, columns), strict=True)))
            result.failed += len(fates.failed)
            self._tell_of_dead(connection, fates, {row.seq for row in rows})
        for cause, keys in fates.dead.items():
            result.dead += len(keys)
            alerts.tell_of_records(connection, "dead", f"{name}: {cause}",
                                   f"{name}: changes that could not be mirrored", name, keys)
        if fates.ahead:
            alerts.tell_of_records(connection, "ahead", f"{name}: versions in the future",
                                   f"{name}: versions lie too far in the future", name, fates.ahead)
        _before_merge_commit()

    def _tell_of_dead(self, connection: Connection, fates: _Fates, ours: set[int]) -> None:
        told = [(self._events[seq].key, {"group": self._events[seq].group_key, "source": self._events[seq].source,
                                         "error": error, "attempts": attempts})
                for seq, state, attempts, _, error, *_ in fates.failed if state == "dead" and seq in ours]
        outcomes.note(connection, self._entity, "dead", told)


def change_of_read(found: PartRead, part: str, epoch: int, number: int, *, seq: int | None = None) -> Change:
    """A part read from its source as a change; it outranks what events of the same version told."""
    stamp = Stamp(epoch, found.version, number, TOMBSTONE_HASH if found.deleted else digest(found.data))
    return Change(found.key, part, "delete" if found.deleted else "update", stamp, found.data, found.group, seq)


group_text = name_or_none
