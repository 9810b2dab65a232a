"""Which change wins: the version guard, and what a change does to its record. Pure: no database, no clock.

Versions of different source systems cannot be compared, so the guard works per part.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from sync_orchestrator.core.ports import Json

TOMBSTONE_HASH = b"\xff" * 16
"""The content hash of every deletion: of two equal versions the deletion is the larger."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What orders two states of a part.

    Attributes:
        epoch: Stepped when the source was restored from a backup.
        version: The source's modification time in microseconds, or any growing number.
        read_sequence: The number of the read that brought the state; 0 where an event told it.
        content_hash: The digest of the part's data, TOMBSTONE_HASH for a deletion.
        seq: The number of the event that told it; 0 for a read. Tickets are drawn from the same sequence.
        inferred: A deletion that no delete event asked for.
    """

    epoch: int
    version: int
    read_sequence: int
    content_hash: bytes
    seq: int = 0
    inferred: bool = False

    @property
    def is_read(self) -> bool:
        """Whether the source itself showed the state."""
        return self.read_sequence > 0

    @property
    def order(self) -> int:
        """The number of the read, drawn before it began, or of the event, drawn when it arrived."""
        return self.read_sequence or self.seq

    @property
    def is_deletion(self) -> bool:
        """Whether the state is a tombstone."""
        return self.content_hash == TOMBSTONE_HASH


def seconds_too_far(version: int, kind: Literal["time", "number", "log"], now: float, most: float) -> float:
    """By how many seconds a version lies further in the future than ``most`` (rule 7); 0 where it does not.

    ``now`` in seconds since 1970. Numbers that are no times lie in no future.
    """
    return max(0.0, version / 1e6 - now - most) if kind == "time" else 0.0


class StateComparison(StrEnum):
    """How an offered state of a part compares to the archived one."""

    NEWER = "newer"
    SAME = "same"
    OLDER = "older"
    TIE = "tie"
    """Other content that an event told for the archived version: the source is read to settle it."""
    BEHIND = "behind"
    """The source shows other content at an older version than the archived one: a replica that lags, or the truth."""


def compare_states(present: Stamp | None, offered: Stamp, *, can_read: bool, settled: bool = False) -> StateComparison:
    """Compares an offered state with the archived one.

    Of equal versions the later one wins (rule 30): a read is later by its read sequence, an event by its arrival, and
    where
    the source can be read it is read rather than guessed. An older version that the source shows is its present truth
    once the archived state has been ``settled`` for longer than a replica may lag (rule 32). Whatever finds a record
    again wins over a tombstone that was inferred (rule 21).

    Args:
        present: The archived state; None where the part is not archived.
        offered: The state that a read or an event brings.
        can_read: Whether the part can be read from its source by key.
        settled: Whether the archived state is older than the lag that is allowed to a source.
    """
    if present is None:
        return StateComparison.NEWER
    if offered.epoch != present.epoch:
        return StateComparison.NEWER if offered.epoch > present.epoch else StateComparison.OLDER
    if present.inferred and not offered.is_deletion:
        return _found_again(present, offered, can_read=can_read)
    if offered.version > present.version:
        return StateComparison.NEWER
    later = offered.order > present.order
    if offered.version < present.version:
        if not (offered.is_read and later) or offered.content_hash == present.content_hash:
            return StateComparison.OLDER
        return StateComparison.NEWER if settled else StateComparison.BEHIND
    if present.content_hash == offered.content_hash:
        return StateComparison.SAME
    if offered.is_read and present.order == offered.order:  # one listing shows the key twice
        return StateComparison.NEWER if offered.content_hash > present.content_hash else StateComparison.OLDER
    if can_read and not offered.is_read:
        return StateComparison.TIE
    return StateComparison.NEWER if later else StateComparison.OLDER


@dataclass(frozen=True, slots=True)
class ReadBounds:
    """What a read of a part can have seen, where versions are the numbers of the part's stream.

    The read began when the stream was at ``noted``, and the stream has recorded since all that the read can have seen.

    Attributes:
        noted: The stream's number before the read. What has this number or a smaller one was visible to the read.
        present: The stream's number now, which is larger than that of any state of the part.
        recorded_whole: The stream recorded a whole state, or a deletion, of the part after ``noted``: that one holds.
        recorded_thin: The stream recorded after ``noted`` that the part changed, and it is read for that once more.
    """

    noted: int
    present: int = 0
    recorded_whole: bool = False
    recorded_thin: bool = False

    def choose_version(self, present: Stamp | None, epoch: int) -> int:
        """The version of the state that the read shows, in this epoch.

        What the stream recorded after ``noted`` has to be newer, so where it did the version stays below that.
        """
        if not self.recorded_thin:
            return self.present
        return self.noted if present is None or present.epoch != epoch else max(self.noted, present.version)


def compare_held_read(present: Stamp | None, offered: Stamp, bounds: ReadBounds) -> StateComparison:
    """Compares what a read of a numbered part shows with the archived state.

    A read steps no part back: what the stream recorded after the read began is newer or the same, and so is what a
    later read has shown. Equal content is written by nobody.

    Args:
        present: The archived state; None where the part is not archived.
        offered: The state that the read shows.
        bounds: What the read can have seen.
    """
    if bounds.recorded_whole:
        return StateComparison.OLDER
    if present is None:
        return StateComparison.NEWER
    if offered.epoch != present.epoch:
        return StateComparison.NEWER if offered.epoch > present.epoch else StateComparison.OLDER
    if present.read_sequence > offered.read_sequence or (not present.is_read and present.version > bounds.noted):
        return StateComparison.OLDER
    if present.content_hash == offered.content_hash:
        return StateComparison.SAME
    if present.read_sequence == offered.read_sequence:  # one listing shows the key twice
        return StateComparison.NEWER if offered.content_hash > present.content_hash else StateComparison.OLDER
    return StateComparison.NEWER


def _found_again(tombstone: Stamp, offered: Stamp, *, can_read: bool) -> StateComparison:
    if offered.version > tombstone.version:
        return StateComparison.NEWER
    if can_read and not offered.is_read:
        return StateComparison.TIE
    later = offered.order > tombstone.order
    return (
        StateComparison.NEWER
        if later and (offered.is_read or offered.version == tombstone.version)
        else StateComparison.OLDER
    )


Action = Literal["create", "update", "delete"]


@dataclass(slots=True)
class Change:
    """A part's offered state: from an event (with its ``seq``) or from a read (``seq`` None)."""

    key: str
    part: str
    action: Action
    stamp: Stamp
    data: Json | None
    group: str | None = None
    seq: int | None = None
    bounds: ReadBounds | None = None
    """Of a read of a part whose versions are the numbers of its stream; its stamp's version counts for nothing."""
    sees_event: int | None = None
    """Of a read that sees what this event tells: it is later than all states that were here before the event."""

    @property
    def deleted(self) -> bool:
        """Whether the change deletes the part."""
        return self.action == "delete"


class Verdict(StrEnum):
    """What became of a change."""

    ACCEPTED = "accepted"
    KEPT = "kept"
    """Stored under a tombstone, which it does not revive."""
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"
    TIE = "tie"
    BEHIND = "behind"
    """The source shows an older version than the archived one, with other content."""
    MISSING = "missing"
    """An update whose record is not here, which waits for it."""
    FETCH = "fetch"
    """An update whose record is not here, which is to be read from its source."""
    NO_GROUP = "no group"


@dataclass(frozen=True, slots=True)
class Rules:
    """What of an entity's configuration decides over changes."""

    owner: str
    required: frozenset[str]
    on_missing: Literal["wait", "fetch", "upsert"]
    readable: frozenset[str]
    """Parts whose source can be read by key."""
    lag: float = 900.0
    """For how many seconds a source may show an older state than it has announced."""
    numbered: frozenset[str] = frozenset()
    """Parts whose versions are the numbers of their source's stream."""
    is_two_way: bool = False
    """Notifications are reasons to read the record, and each read is remembered as the latest (``core/two_way/``)."""


@dataclass(slots=True)
class RecordState:
    """A record as the guard sees it; ``revision`` 0 is a record that is not here."""

    revision: int = 0
    group: str | None = None
    deleted: bool = False
    ready: bool = False
    parts: dict[str, Stamp] = field(default_factory=dict)
    settled: frozenset[str] = frozenset()
    """Parts that have not changed in the archive for longer than ``Rules.lag``."""


def decide(record: RecordState, change: Change, rules: Rules) -> Verdict:
    """Judges one change and applies it to ``record`` where it is accepted or kept.

    A read that confirms what events told leaves its read sequence, so that later events of that version do not
    overrule it. (One that confirms an earlier read leaves none: a full sync of unchanged data writes nothing.)
    """
    verdict = _judge_change(record, change, rules)
    if verdict in (Verdict.ACCEPTED, Verdict.KEPT):
        if change.bounds is not None:
            version = change.bounds.choose_version(record.parts.get(change.part), change.stamp.epoch)
            change.stamp = replace(change.stamp, version=version)
        _apply_change(record, change, rules, revive=verdict is Verdict.ACCEPTED)
    elif verdict is Verdict.DUPLICATE and _is_later_confirmation(record.parts[change.part], change, rules):
        record.parts[change.part] = change.stamp
    return verdict


def _is_later_confirmation(present: Stamp, change: Change, rules: Rules) -> bool:
    """Whether the same state, told again, is to be remembered as the later one."""
    if change.bounds is not None:
        return False
    if change.stamp.is_read:
        return rules.is_two_way or not present.is_read
    return change.part not in rules.readable and change.stamp.order > present.order


def _judge_change(record: RecordState, change: Change, rules: Rules) -> Verdict:
    is_owner = change.part == rules.owner
    if rules.owner not in record.parts and not change.stamp.is_read:
        needs_record = change.action == "update" or (change.action == "create" and not is_owner)
        if needs_record and rules.on_missing != "upsert":
            return Verdict.FETCH if rules.on_missing == "fetch" else Verdict.MISSING
    match _compare(record, change, rules):
        case StateComparison.OLDER:
            return Verdict.SUPERSEDED
        case StateComparison.BEHIND:
            return Verdict.BEHIND
        case StateComparison.SAME:
            return Verdict.DUPLICATE
        case StateComparison.TIE:
            return Verdict.TIE
    if is_owner and not change.deleted and not (change.group or record.group):
        return Verdict.NO_GROUP
    return Verdict.KEPT if record.deleted and not is_owner else Verdict.ACCEPTED


def _compare(record: RecordState, change: Change, rules: Rules) -> StateComparison:
    present = record.parts.get(change.part)
    if change.bounds is not None:
        return compare_held_read(present, change.stamp, change.bounds)
    # An event of a numbered part has a number of its own: one that a read has seen already settles nothing.
    return compare_states(
        present,
        change.stamp,
        can_read=change.part in rules.readable and change.part not in rules.numbered,
        settled=change.part in record.settled or _is_later_by_log(present, change),
    )


def _is_later_by_log(present: Stamp | None, change: Change) -> bool:
    """Whether the source showed the change after the archived state, whatever their versions."""
    return present is not None and change.sees_event is not None and present.order < change.sees_event


def _apply_change(record: RecordState, change: Change, rules: Rules, *, revive: bool) -> None:
    record.parts[change.part] = change.stamp
    if change.part == rules.owner:
        record.deleted = change.deleted
        record.group = change.group or record.group
    if revive:
        record.revision += 1
    record.ready = rules.owner in record.parts and (record.deleted or rules.required <= record.parts.keys())
