"""Processes a batch of due events: reads what the decisions need, merges into the archive, writes the decisions down.

What becomes of an event is decided by ``event_decisions.py``.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from sync_orchestrator.core.archive import deletion_caps
from sync_orchestrator.core.archive.absent_fields import CheckedSource, find_lacking, refuse_vanished
from sync_orchestrator.core.archive.archived_records import read_covered_groups, read_stamps
from sync_orchestrator.core.archive.merge import merge
from sync_orchestrator.core.archive.passed_over import list_known_keys
from sync_orchestrator.core.archive.read_sequence import next_read_sequence
from sync_orchestrator.core.capture.holds import NotedStreams, StreamHolds
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.locks import AdvisoryLock, share_lock
from sync_orchestrator.core.db.session import force_index_scans, in_transaction
from sync_orchestrator.core.drain.event_decisions import (
    Archive,
    Decision,
    Die,
    EventDecider,
    Merge,
    ReadSource,
    SourceRead,
    Supersede,
    Wait,
)
from sync_orchestrator.core.drain.part_reader import read_requested_parts
from sync_orchestrator.core.ledger.event_claims import (
    claim_events,
    delete_event_ids,
    finish_superseded,
    mark_archived,
    mark_failed,
    select_due_events,
)
from sync_orchestrator.core.ledger.event_rows import ArchivedEvent, DueEvent, EventLease, FailedEvent, SupersededEvent
from sync_orchestrator.core.ledger.finishing import finish_reached
from sync_orchestrator.core.notifications import alerts, outcomes
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.push.settlement import Settled
from sync_orchestrator.core.shutdown import ended_in_order
from sync_orchestrator.core.systems.epochs import list_epochs
from sync_orchestrator.errors import CallFailed
from sync_orchestrator.expressions.truth import NoTruth, parse_condition

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sync_orchestrator.core.context import Context, EntityContext
    from sync_orchestrator.core.version_guard import Change

T = TypeVar("T")

_taken = CrashPoint("events.taken")
_read = CrashPoint("events.read")
_before_merge_commit = CrashPoint("events.before_merge_commit")
_merged = CrashPoint("events.merged")

_MAX_ROUNDS = 3
_MAX_HOLD_SECONDS = 2.0
"""How long a batch waits until a stream has passed its reads; after that the events are due again later."""


async def work_off(
    context: Context,
    most: int,
    tokens: set[int],
    *,
    entities: Sequence[str] | None = None,
    alone: threading.Lock | None = None,
) -> tuple[int, Settled]:
    """Takes due events and settles each as far as the archive decides it.

    What came with its data is archived by the transaction that takes it; the rest is leased, and read from its source.

    Args:
        context: The database, the configuration, the entities and their systems.
        most: The largest number of events.
        tokens: Gets the tokens of leases that may still be held.
        entities: The entities whose events are taken; by default those of all.
        alone: Keeps two takers of one drain apart, which would divide what came together between them.

    Returns:
        How many events were taken, and what was finished.
    """
    names = list(entities or context.entities)

    def process_batch(connection: Connection) -> tuple[int, list[EventBatch], Settled]:
        force_index_scans(connection)
        with alone or nullcontext():
            events = select_due_events(connection, names, most)
        result = Settled()
        if not events:
            return 0, [], result
        _taken()
        token = next_read_sequence(connection)
        tokens.add(token)
        by_entity: dict[str, list[DueEvent]] = defaultdict(list)
        for event in sorted(events, key=lambda event: event.seq):
            by_entity[event.entity].append(event)
        batches = [EventBatch(context, context.entities[name], some, token) for name, some in sorted(by_entity.items())]
        for batch in batches:
            batch.merge_received(connection, result)
        return len(events), batches, result

    count, batches, result = await ended_in_order(asyncio.to_thread(in_transaction, context.engine, process_batch))
    if batches:
        _merged()
    for batch in batches:
        await batch.read_sources(result)
    return count, result


class EventBatch:
    """The events of one entity that were taken together."""

    def __init__(self, context: Context, entity: EntityContext, events: Iterable[DueEvent], token: int) -> None:
        hold = context.holder.hold
        self._engine = context.engine
        self._entity = entity
        self._events = {event.seq: event for event in events}
        self._lease = EventLease(token, context.config.limits.lease, None if hold is None else hold.id)
        self._decider = EventDecider.of_entity(entity)
        self._requests: list[ReadSource] = []
        self._holds = StreamHolds(context.engine, entity)

    def merge_received(self, connection: Connection, result: Settled) -> None:
        """Merges what the events brought, in the transaction that took them, and leases those whose sources are read.

        Adds what is finished to ``result``.
        """
        share_lock(connection, AdvisoryLock.COMPLETION, self._entity.name)
        vanished = self._find_vanished_fields(connection)
        passed_over, unclear = self._find_passed_over(connection)
        decisions, changes = _split_decisions(
            self._decider.decide_received(
                event,
                unclear.get(event.seq) or vanished.get(event.seq),
                passed_over=passed_over.get(event.seq),
            )
            for event in self._events.values()
        )
        decisions += self._merge_changes(connection, changes, {})
        self._write_decisions(connection, decisions, result, held_token=None)
        self._requests = _of_type(decisions, ReadSource)
        if self._requests:
            claim_events(connection, [request.event.seq for request in self._requests], self._lease)

    async def read_sources(self, result: Settled) -> None:
        """Reads from their sources what could not be decided without them, and adds what is finished to ``result``."""
        for _ in range(_MAX_ROUNDS):
            if not self._requests:
                return
            reads = await self._read_parts(self._requests)
            _read()
            self._requests = await asyncio.to_thread(
                in_transaction, self._engine, partial(self._merge_reads, reads=reads, result=result)
            )

    def _find_vanished_fields(self, connection: Connection) -> dict[int, str]:
        """Returns why the data of some events cannot be taken as it is, by the events' numbers (rule 33).

        Fields that the mapping reads are absent from it, though the archive has values for them. An absent field is not
        null: it would wipe a value at the third party.
        """
        problems: dict[int, str] = {}
        for part, source in self._entity.sources.items():
            if not isinstance(source, CheckedSource):
                continue
            some = [
                (event, event.data)
                for event in self._events.values()
                if event.source == part
                and event.data is not None
                and event.action != "delete"
                and find_lacking(event.data, source.fields)
            ]
            rows = [PartRead(event.key, event.version, data) for event, data in some]
            checked = refuse_vanished(connection, self._entity.name, part, rows, source.fields) if rows else []
            problems |= {event.seq: row.problem for (event, _), row in zip(some, checked, strict=True) if row.problem}
        return problems

    def _find_passed_over(
        self, connection: Connection
    ) -> tuple[dict[int, Literal["known", "unknown"]], dict[int, str]]:
        """Finds events whose data is of items that are no records (``only_when``).

        Returns, by the events' numbers, whether the archive has the record, or another event of the batch may bring it;
        and why that cannot be said of others.
        """
        found: dict[int, Literal["known", "unknown"]] = {}
        unclear: dict[int, str] = {}
        for part, settings in self._entity.settings.parts.items():
            if settings.only_when is None:
                continue
            condition, others = parse_condition(settings.only_when), list[DueEvent]()
            for event in self._events.values():
                if event.source != part or event.data is None or event.action == "delete":
                    continue
                try:
                    if not condition.holds(event.data):
                        others.append(event)
                except NoTruth as error:
                    unclear[event.seq] = f"only_when: {error}"
            known = list_known_keys(connection, self._entity.name, part, {event.key for event in others})
            times = Counter(event.key for event in self._events.values()) if others else Counter[str]()
            for event in others:
                found[event.seq] = "known" if event.key in known or times[event.key] > 1 else "unknown"
        return found, unclear

    async def _read_parts(self, requests: Sequence[ReadSource]) -> list[SourceRead]:
        with self._engine.begin() as connection:
            number = next_read_sequence(connection)
            epochs = list_epochs(connection)
        if any(request.parts & self._entity.rules.numbered for request in requests):
            return await self._read_numbered(requests, number, epochs)
        return await self._read_now(requests, number, epochs)

    async def _read_now(
        self, requests: Sequence[ReadSource], number: int, epochs: Mapping[str, int]
    ) -> list[SourceRead]:
        shown = await read_requested_parts(self._entity.sources, self._entity.name, requests)
        return [
            SourceRead(request, {}, parts, number, epochs)
            if isinstance(parts, CallFailed)
            else SourceRead(request, parts, None, number, epochs)
            for request, parts in zip(requests, shown, strict=True)
        ]

    async def _read_numbered(
        self, requests: Sequence[ReadSource], number: int, epochs: Mapping[str, int]
    ) -> list[SourceRead]:
        """Reads parts whose versions are numbers of a stream, and waits for a moment until that has passed the read."""
        noted, reads, failure, awaits_stream = NotedStreams(), list[SourceRead](), None, False
        parts = {part for request in requests for part in request.parts}
        try:
            noted = await asyncio.to_thread(in_transaction, self._engine, lambda c: self._holds.note_within(c, parts))
            reads = await self._read_now(requests, number, epochs)
            hold = await self._holds.end_read(noted)
            awaits_stream = True
            await self._holds.wait(hold, _MAX_HOLD_SECONDS)
        except CallFailed as error:
            failure = error
        if failure is None:
            return [replace(read, noted=noted.numbers) for read in reads]
        return [
            SourceRead(read.request, {}, failure, number, epochs, awaits_stream=awaits_stream)
            if read.request.parts & self._entity.rules.numbered
            else read
            for read in reads or await self._read_now(requests, number, epochs)
        ]

    def _merge_reads(self, connection: Connection, reads: Sequence[SourceRead], result: Settled) -> list[ReadSource]:
        """Merges what the sources showed; returns what is read next."""
        share_lock(connection, AdvisoryLock.COMPLETION, self._entity.name)
        absent = [read.event.key for read in reads if read.is_absent]
        stamps = read_stamps(connection, self._entity.name, absent, self._entity.rules.lag)
        decisions, changes = _split_decisions(self._decider.decide_read(read, stamps) for read in reads)
        # A thin event is a request to look: once its source was read, the same notification is a new one (rule 31).
        if looked := [read.event.seq for read in reads if read.event.is_thin and read.failure is None]:
            delete_event_ids(connection, looked)
        decisions += self._merge_changes(connection, changes, {read.event.seq: read.request for read in reads})
        self._write_decisions(connection, decisions, result, held_token=self._lease.token)
        return _of_type(decisions, ReadSource)

    def _merge_changes(
        self, connection: Connection, changes: Sequence[Change], requests: Mapping[int, ReadSource]
    ) -> list[Decision]:
        """Merges changes into the archive; returns what becomes of the events whose numbers they have."""
        inferred = [change for change in changes if change.stamp.inferred]
        held = deletion_caps.held_back(connection, self._entity, inferred) if inferred else []
        decisions: list[Decision] = [
            self._decider.decide_over_cap(self._events[change.seq]) for change in held if change.seq is not None
        ]
        allowed = [change for change in changes if change not in held] if held else changes
        ended = [
            (self._events[merged.change.seq], merged, requests.get(merged.change.seq))
            for merged in merge(
                connection, self._entity.name, allowed, self._entity.rules, two_way=self._entity.two_way
            )
            if merged.change.seq is not None
        ]
        needs_groups = any(self._decider.is_missing(event, merged.verdict, request) for event, merged, request in ended)
        covered = read_covered_groups(connection, self._entity.name) if needs_groups else {}
        decisions += [self._decider.decide_merged(event, merged, request, covered) for event, merged, request in ended]
        return decisions

    def _write_decisions(
        self, connection: Connection, decisions: Sequence[Decision], result: Settled, *, held_token: int | None
    ) -> None:
        """Writes decisions down. ``held_token``: as in ``event_claims.py``."""
        if archived := [ArchivedEvent(each.event.seq, each.revision) for each in _of_type(decisions, Archive)]:
            reached = mark_archived(connection, archived, self._lease, held_token=held_token)
            if reached:
                result.add_finished(finish_reached(connection, self._entity.name, reached))
        if superseded := [SupersededEvent(each.event.seq, each.reason) for each in _of_type(decisions, Supersede)]:
            result.superseded += finish_superseded(connection, superseded, held_token=held_token)
        waiting, dead = _of_type(decisions, Wait), _of_type(decisions, Die)
        if waiting or dead:
            failed = [*map(_waiting_event, waiting), *map(_dead_event, dead)]
            ours = mark_failed(connection, failed, held_token=held_token)
            result.failed += len(failed)
            result.dead += len(dead)
            self._record_dead_outcomes(connection, [each for each in dead if each.event.seq in ours])
            self._alert_of_dead(connection, dead)
            self._alert_of_waiting(connection, waiting)
        _before_merge_commit()

    def _record_dead_outcomes(self, connection: Connection, dead: Sequence[Die]) -> None:
        told = [
            (
                each.event.key,
                {
                    "group": each.event.group,
                    "source": each.event.source,
                    "error": each.reason,
                    "attempts": each.attempts,
                },
            )
            for each in dead
        ]
        outcomes.record_outcomes(connection, self._entity.outcomes, "dead", told)

    def _alert_of_dead(self, connection: Connection, dead: Sequence[Die]) -> None:
        name = self._entity.name
        for cause, keys in _keys_by_cause((each.cause, each.event.key) for each in dead).items():
            title = f"{name}: changes that could not be mirrored"
            alerts.raise_alert_for_records(connection, "dead", f"{name}: {cause}", title, name, keys)

    def _alert_of_waiting(self, connection: Connection, waiting: Sequence[Wait]) -> None:
        name = self._entity.name
        behind = _keys_by_cause((each.alert_cause, each.event.key) for each in waiting if each.alert_cause is not None)
        for cause, keys in behind.items():
            title = f"{name}: sources do not show what was announced: {cause}"
            alerts.raise_alert_for_records(connection, "source_behind", f"{name}: {cause}", title, name, keys)
        ahead = [each.event.key for each in waiting if each.awaiting == "clock"]
        cause, title = f"{name}: versions in the future", f"{name}: versions lie too far in the future"
        alerts.raise_alert_for_records(connection, "version_in_future", cause, title, name, ahead)


def _split_decisions(decided: Iterable[Decision | Merge]) -> tuple[list[Decision], list[Change]]:
    """Returns the events that are decided, and the changes that are merged to decide the others."""
    decisions: list[Decision] = []
    changes: list[Change] = []
    for each in decided:
        if not isinstance(each, Merge):
            decisions.append(each)
            continue
        changes += each.changes
        if each.archived is not None:
            decisions.append(each.archived)
    return decisions, changes


def _of_type(decisions: Iterable[Decision], kind: type[T]) -> list[T]:
    return [each for each in decisions if isinstance(each, kind)]


def _waiting_event(wait: Wait) -> FailedEvent:
    return FailedEvent(
        wait.event.seq,
        "waiting",
        wait.attempts,
        wait.seconds,
        wait.reason,
        wait.awaiting,
        wait.is_contradicted,
    )


def _dead_event(death: Die) -> FailedEvent:
    return FailedEvent(death.event.seq, "dead", death.attempts, None, death.reason, death.awaiting)


def _keys_by_cause(found: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    by_cause: dict[str, list[str]] = defaultdict(list)
    for cause, key in found:
        by_cause[cause].append(key)
    return by_cause
