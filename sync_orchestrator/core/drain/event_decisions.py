"""What becomes of each event of a batch. Pure: no database, no clock; what was read before is given.

An event is decided when it is received, again when its source was read, and when the changes that it brought were
merged into the archive. ``event_batch.py`` reads, merges and writes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sync_orchestrator.core.archive.changes_from_reads import bounds_of, change_of_read
from sync_orchestrator.core.failure_causes import cause_of
from sync_orchestrator.core.ledger.event_rows import ANNOUNCED_ORIGINS, CAPTURE_ORIGIN
from sync_orchestrator.core.retry import after_failure
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.core.values.names import name_or_none
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH, Change, Stamp, Verdict, seconds_too_far
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.expressions.selectors import compile_selector

if TYPE_CHECKING:
    from sync_orchestrator.config import RetrySettings
    from sync_orchestrator.core.archive.merge import Merged
    from sync_orchestrator.core.context import EntityContext
    from sync_orchestrator.core.ledger.event_rows import Awaiting, DueEvent
    from sync_orchestrator.core.ports import PartRead
    from sync_orchestrator.core.version_guard import Rules

NO_RECORD = "its record is not here"
NOT_THERE = "its source has no such record"
BEHIND = "its source still shows an older version than the event names"

_NEWER_IS_ARCHIVED = "a newer version is archived already"
PASSED_OVER = "it is no record: only_when of the part does not hold"
_NOT_LISTED = "its source has no such record, and a full sync did not list it"
_OLDER_WAS_LISTED = "its source shows an older version, which a full sync took over"
_OVER_CAP = "it would be one deletion more than the cap allows, and no delete event asked for it"
_IN_THE_FUTURE = "its version lies too far in the future"

_REREAD_SECONDS = 3600.0
"""The longest wait for a version that a source shows in the future: it may be corrected without a notification."""
_MAX_PAUSE_SECONDS = 300.0
_MAX_LAG_PAUSE_SECONDS = 60.0
"""The longest pause while a replica may still catch up."""
_MAX_STREAM_PAUSE_SECONDS = 30.0
"""The longest pause while a stream has not passed a read."""
_GIVE_UP_SECONDS = 86_400.0

_NEEDS_RECORD_OR_READ = frozenset({Verdict.TIE, Verdict.FETCH, Verdict.MISSING})


class GroupSelector(Protocol):
    """Finds the business group in the data of the owner's part."""

    @property
    def expression(self) -> str:
        """The text of the expression."""
        ...

    def search(self, value: object) -> Any:
        """Returns what the expression picks from a value."""
        ...


@dataclass(frozen=True, slots=True)
class Archive:
    """The event is archived: a revision of its record holds it."""

    event: DueEvent
    revision: int


@dataclass(frozen=True, slots=True)
class Supersede:
    """The event has nothing to bring any more."""

    event: DueEvent
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """The event is due again later.

    Attributes:
        seconds: None where only the arrival of its record wakes it.
        attempts: Attempts spent so far.
        awaiting: What it waits for; None after a failure that may pass.
        is_contradicted: Its source contradicts it.
        alert_cause: Under which cause operators are alerted, because its source has not shown it for too long.
    """

    event: DueEvent
    reason: str
    seconds: float | None
    attempts: int
    awaiting: Awaiting | None = None
    is_contradicted: bool = False
    alert_cause: str | None = None


@dataclass(frozen=True, slots=True)
class Die:
    """An operator has to look at the event. ``cause`` is what alerts group it by."""

    event: DueEvent
    reason: str
    attempts: int
    cause: str
    awaiting: Awaiting | None = None


@dataclass(frozen=True, slots=True)
class ReadSource:
    """Parts of the event's record are read from their sources before the event is decided.

    Attributes:
        is_last_resort: Without the record in these sources the event dies.
        archived_revision: The event is archived under this revision, whose record lacks the parts that are read.
    """

    event: DueEvent
    parts: frozenset[str]
    is_last_resort: bool = False
    archived_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Merge:
    """Changes are merged into the archive; what becomes of the one that has the event's number decides the event.

    ``archived``: the event is archived whatever becomes of the changes.
    """

    changes: tuple[Change, ...]
    archived: Archive | None = None


Decision = Archive | Supersede | Wait | Die | ReadSource


@dataclass(frozen=True, slots=True)
class SourceRead:
    """What the sources show of the parts that were requested; None for a part that they do not have."""

    request: ReadSource
    parts: Mapping[str, PartRead | None]
    failure: CallFailed | None
    number: int
    """The number of the read."""
    epochs: Mapping[str, int]
    """The present epochs, by source."""
    noted: Mapping[str, int] = field(default_factory=dict)
    """By part, the number of its stream before the read, where that numbers the versions."""
    awaits_stream: bool = False
    """The read failed only since its stream has not passed it in time."""

    @property
    def event(self) -> DueEvent:
        """The event that asked for the read."""
        return self.request.event

    @property
    def shows_passed_over(self) -> bool:
        """Whether one of the sources shows an item that is no record, and was none before."""
        return any(found is not None and found.passed_over for found in self.parts.values())

    @property
    def is_absent(self) -> bool:
        """Whether one of the sources has no such record."""
        return self.failure is None and None in self.parts.values()


@dataclass(frozen=True, slots=True)
class EventDecider:
    """Decides about the events of one entity.

    Attributes:
        version_kinds: Whether versions are times, numbers, or those of a stream, by part.
        max_ahead_seconds: How far a version that is a time may lie in the future.
        group: Finds the business group in the owner's part.
        draw: Draws the jitter of a wait, from 0 to 1.
    """

    rules: Rules
    retry: RetrySettings
    version_kinds: Mapping[str, Literal["time", "number", "log"]]
    max_ahead_seconds: float
    group: GroupSelector
    draw: Callable[[], float] = random.random

    @classmethod
    def of_entity(cls, entity: EntityContext) -> EventDecider:
        """Makes the decider that an entity's configuration describes."""
        settings = entity.settings
        return cls(
            entity.rules,
            entity.retry,
            {name: part.version.kind for name, part in settings.parts.items()},
            settings.max_ahead,
            compile_selector(settings.parts[entity.rules.owner].group or "@"),
        )

    def decide_received(
        self, event: DueEvent, vanished: str | None, *, passed_over: Literal["known", "unknown"] | None = None
    ) -> Decision | Merge:
        """Decides about an event by itself.

        Args:
            event: The event.
            vanished: Why its data cannot be taken: mapped fields that the archive has are absent (rule 33), or nobody
                can say whether it is a record.
            passed_over: Its data is of an item that is no record (``only_when``): whether the archive has the record.
        """
        if passed_over is not None:
            return self._decide_passed_over(event, is_known=passed_over == "known")
        if ahead := self._seconds_ahead(event.source, event.version, event.now):
            return _wait_for_clock(event, ahead)
        is_reason_to_read = event.is_thin or (self.rules.is_two_way and event.source == self.rules.owner)
        change = None if is_reason_to_read else self._change_of_event(event)
        is_doubted = event.absent_at is not None or _is_inferred_deletion(event)  # its source contradicted it before
        if event.source in self.rules.readable and (
            change is None or vanished or is_doubted or self._is_partial(change)
        ):
            return self._request_read(event)
        if vanished is not None:
            return self._fail_permanently(event, vanished)
        if change is None:
            return self._fail_permanently(
                event, f"its source '{event.source}' cannot be read by key: events must carry data"
            )
        return Merge((change,))

    def _decide_passed_over(self, event: DueEvent, *, is_known: bool) -> Decision | Merge:
        """The source is asked where it can be: an earlier event of the same record may just be merged."""
        if event.source in self.rules.readable:
            return self._request_read(event)
        if not is_known:
            return Supersede(event, PASSED_OVER)
        gone = Stamp(event.epoch, event.version, event.read_sequence, TOMBSTONE_HASH, event.seq, inferred=True)
        return Merge((Change(event.key, event.source, "delete", gone, None, None, event.seq),))

    def decide_read(self, read: SourceRead, stamps: Mapping[tuple[str, str], Stamp]) -> Decision | Merge:
        """Decides about an event whose sources were read.

        Args:
            read: What they show.
            stamps: The archived stamps of the record, by key and part, where one of them has no such record.
        """
        event = read.event
        if read.failure is not None:
            return self._decide_unread(event, read.failure, awaits_stream=read.awaits_stream)
        shown = {part: found for part, found in read.parts.items() if found is not None and not found.passed_over}
        if len(shown) < len(read.parts) and read.request.archived_revision is None and read.shows_passed_over:
            return Supersede(event, PASSED_OVER)
        ahead = (self._seconds_ahead(part, found.version, event.now) for part, found in shown.items())
        if seconds := max(ahead, default=0.0):
            return _wait_for_clock(event, min(seconds, _REREAD_SECONDS))
        if (revision := read.request.archived_revision) is not None:
            changes = tuple(_change_of_part(read, part, found) for part, found in shown.items())
            return Merge(changes, Archive(event, revision))
        if read.is_absent:
            return self.decide_absent(read, stamps)
        own = shown.get(event.source)
        # A captured delete is visible before it is recorded: a row that the source shows came after it.
        is_after = event.source in self.rules.numbered or (event.origin, event.action) == (CAPTURE_ORIGIN, "delete")
        if own is not None and own.version < event.version and not is_after:
            return self._decide_behind(event)
        told = () if own is not None else (self._change_of_event(event),)
        return Merge((*told, *(_change_of_part(read, part, found, of_event=True) for part, found in shown.items())))

    def decide_absent(self, read: SourceRead, stamps: Mapping[tuple[str, str], Stamp]) -> Decision | Merge:
        """Decides about an event of whose record a source has nothing (rule 20).

        That confirms a delete event, and contradicts any other event.
        """
        event = read.event
        if event.action == "delete" and event.source in read.parts and read.parts[event.source] is None:
            is_inferred = event.origin not in ANNOUNCED_ORIGINS
            version = self._version_of_absence(event, stamps.get((event.key, event.source)))
            gone = Stamp(event.epoch, version, read.number, TOMBSTONE_HASH, inferred=is_inferred)
            bounds = bounds_of(read.noted.get(event.source))
            return Merge((Change(event.key, event.source, "delete", gone, None, None, event.seq, bounds),))
        archived = stamps.get((event.key, event.source))
        if archived is not None and (archived.epoch, archived.version) > (event.epoch, event.version):
            return Supersede(event, _NEWER_IS_ARCHIVED)
        if event.ask_source and _contradicted_seconds(event) >= self.rules.lag:
            return Supersede(event, _NOT_LISTED)
        return self._wait_for_source(event, NOT_THERE)

    def _version_of_absence(self, event: DueEvent, archived: Stamp | None) -> int:
        """The version of a record that is gone. Where its row only told the key, what is archived is what is gone."""
        if (
            archived is None
            or not event.is_thin
            or archived.epoch != event.epoch
            or event.source in self.rules.numbered
        ):
            return event.version
        return max(event.version, archived.version)

    def decide_over_cap(self, event: DueEvent) -> Wait:
        """Decides about a deletion that no delete event asked for and that exceeds the cap (rule 22)."""
        return Wait(event, _OVER_CAP, _MAX_PAUSE_SECONDS, event.attempts, "deletions")

    def is_missing(self, event: DueEvent, verdict: Verdict, request: ReadSource | None) -> bool:
        """Returns whether the event's record is missing, so that its business groups matter.

        Args:
            event: The event.
            verdict: What became of its change.
            request: The read that the change came from; None where the event brought it.
        """
        if request is not None:
            return verdict in _NEEDS_RECORD_OR_READ
        return verdict is Verdict.MISSING and not event.ask_source

    def decide_merged(
        self, event: DueEvent, merged: Merged, request: ReadSource | None, covered: Mapping[str, bool]
    ) -> Decision:
        """Decides about an event by what became of its change.

        Args:
            event: The event.
            merged: What became of the change.
            request: The read that the change came from; None where the event brought it.
            covered: The business groups of the entity, and whether each had its first full sync; may be empty unless
                the record ``is_missing``.
        """
        match merged.verdict:
            case Verdict.ACCEPTED | Verdict.KEPT | Verdict.DUPLICATE:
                assert merged.revision is not None
                if lacks := merged.lacks & self.rules.readable:
                    return ReadSource(event, lacks, archived_revision=merged.revision)
                return Archive(event, merged.revision)
            case Verdict.SUPERSEDED:
                return Supersede(event, _NEWER_IS_ARCHIVED)
            case Verdict.BEHIND:
                return self._wait_for_source(event, BEHIND)
            case Verdict.NO_GROUP:
                return self._fail_permanently(event, f"no business group at '{self.group.expression}' in the part")
            case Verdict.TIE | Verdict.FETCH | Verdict.MISSING:
                if self.is_missing(event, merged.verdict, request):
                    return self._decide_missing(event, request, covered)
                return self._request_read(event)

    def _decide_missing(self, event: DueEvent, request: ReadSource | None, covered: Mapping[str, bool]) -> Decision:
        is_covered = covered.get(event.group) if event.group else bool(covered) and all(covered.values())
        if not is_covered:
            return Wait(event, NO_RECORD, None, event.attempts, "record")
        was_last_resort = request is not None and request.is_last_resort
        if self._is_last_attempt(event) and not was_last_resort:
            return self._request_read(event, is_last_resort=True)
        return self._fail_event(event, CallFailed(Failure.TRANSIENT, NO_RECORD), awaiting="record")

    def _is_last_attempt(self, event: DueEvent) -> bool:
        """Returns whether the event would die now, and the owner's source can be read before that."""
        is_readable = self.rules.owner in self.rules.readable
        return is_readable and after_failure(self.retry, event.attempts, Failure.TRANSIENT).wait is None

    def _decide_unread(self, event: DueEvent, failure: CallFailed, *, awaits_stream: bool = False) -> Decision:
        """A source that cannot be read now costs no attempts: that says nothing about the event."""
        if failure.kind is Failure.PERMANENT:
            return self._fail_event(event, failure)
        waited = max(0.0, event.now - event.received_at.timestamp())
        if waited >= max(_GIVE_UP_SECONDS, self.rules.lag) + _MAX_PAUSE_SECONDS:
            return self._fail_permanently(event, failure.detail)
        pause = min(_MAX_PAUSE_SECONDS, max(self.retry.first_wait, waited))
        if awaits_stream:
            pause = min(_MAX_STREAM_PAUSE_SECONDS, max(1.0, waited / 4))
        return Wait(
            event,
            failure.detail,
            max(pause, failure.retry_after or 0.0),
            event.attempts,
            "source",
            alert_cause=f"'{event.source}' cannot be read" if waited >= self.rules.lag else None,
        )

    def _decide_behind(self, event: DueEvent) -> Decision:
        """The source shows an older version than the event names."""
        if event.ask_source and _contradicted_seconds(event) >= self.rules.lag:
            return Supersede(event, _OLDER_WAS_LISTED)
        return self._wait_for_source(event, BEHIND)

    def _wait_for_source(self, event: DueEvent, reason: str) -> Decision:
        """The source contradicts the event: replicas lag, tables are reloaded. No attempt is spent (rule 20).

        After ``absent_after`` an operator is alerted, and the event goes on waiting, for a day at most.
        """
        elapsed, lag, first_wait = _contradicted_seconds(event), self.rules.lag, self.retry.first_wait
        if elapsed >= max(_GIVE_UP_SECONDS, lag):
            return self._fail_permanently(event, reason)
        pause = min(_MAX_PAUSE_SECONDS, max(first_wait, elapsed))
        if elapsed < lag:
            pause = min(pause, max(first_wait, min(_MAX_LAG_PAUSE_SECONDS, lag - elapsed)))
        is_overdue = elapsed >= lag and not event.ask_source
        return Wait(event, reason, pause, event.attempts, "source", True, reason if is_overdue else None)

    def _fail_event(self, event: DueEvent, failure: CallFailed, *, awaiting: Awaiting | None = None) -> Wait | Die:
        after = after_failure(
            self.retry, event.attempts, failure.kind, retry_after=failure.retry_after, draw=self.draw()
        )
        if after.wait is None:
            return Die(event, failure.detail, after.attempts, cause_of(failure, event.key), awaiting)
        return Wait(event, failure.detail, after.wait, after.attempts, awaiting)

    def _fail_permanently(self, event: DueEvent, reason: str) -> Wait | Die:
        return self._fail_event(event, CallFailed(Failure.PERMANENT, reason))

    def _request_read(self, event: DueEvent, *, is_last_resort: bool = False) -> ReadSource:
        is_owner_read = event.ask_source or is_last_resort or self.rules.on_missing == "fetch"
        parts = {event.source, self.rules.owner} if is_owner_read else {event.source}
        return ReadSource(event, frozenset(parts) & self.rules.readable, is_last_resort)

    def _seconds_ahead(self, part: str, version: int, now: float) -> float:
        return seconds_too_far(version, self.version_kinds[part], now, self.max_ahead_seconds)

    def _is_partial(self, change: Change) -> bool:
        """The owner's whole part names the business group: which one it would be depends on what came before."""
        return change.part == self.rules.owner and not change.deleted and change.group is None

    def _change_of_event(self, event: DueEvent) -> Change:
        content = TOMBSTONE_HASH if event.action == "delete" else compute_digest(event.data)
        group = event.group
        if event.source == self.rules.owner and event.data:
            group = name_or_none(self.group.search(event.data)) or group
        is_inferred = event.action == "delete" and event.origin not in ANNOUNCED_ORIGINS
        stamp = Stamp(event.epoch, event.version, event.read_sequence, content, event.seq, is_inferred)
        return Change(event.key, event.source, event.action, stamp, event.data, group, event.seq)


def _change_of_part(read: SourceRead, part: str, found: PartRead, *, of_event: bool = False) -> Change:
    """A deletion is asked for where the event says so; one that a flag of the source shows is inferred.

    ``of_event``: what becomes of the event's own part decides the event.
    """
    event = read.event
    return change_of_read(
        found,
        part,
        read.epochs.get(part, 0),
        read.number,
        seq=event.seq if of_event and part == event.source else None,
        asked_for=event.action == "delete" and part == event.source,
        noted=read.noted.get(part),
        sees_event=event.seq if event.origin == CAPTURE_ORIGIN and part == event.source else None,
    )


def _wait_for_clock(event: DueEvent, seconds: float) -> Wait:
    return Wait(event, _IN_THE_FUTURE, seconds + 1, event.attempts, "clock")


def _is_inferred_deletion(event: DueEvent) -> bool:
    """Whether a check of the sources inferred a deletion, which the source confirms once more."""
    return event.action == "delete" and event.origin == "audit"


def _contradicted_seconds(event: DueEvent) -> float:
    """For how many seconds the source has contradicted the event."""
    return 0.0 if event.absent_at is None else max(0.0, event.now - event.absent_at.timestamp())
