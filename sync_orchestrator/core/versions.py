"""Which change wins: the version guard, and what a change does to its record. Pure: no database, no clock.

Versions of different source systems cannot be compared, so the guard works per part. Not here: how the archive
carries the decisions out (``archive.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

TOMBSTONE_HASH = b"\xff" * 16
"""The content hash of every deletion: of two equal versions the deletion is the larger."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What orders two states of a part.

    ``epoch`` is stepped when a source was restored from a backup; ``ticket`` is 0 for what an event told, and
    otherwise the number of the read that brought it (a later read has a larger one).
    """

    epoch: int
    version: int
    ticket: int
    content_hash: bytes


def seconds_too_far(version: int, kind: Literal["time", "number"], now: float, most: float) -> float:
    """By how many seconds a version lies further in the future than ``most`` (rule 7); 0 where it does not.

    ``now`` in seconds since 1970. Numbers that are no times lie in no future.
    """
    return max(0.0, version / 1e6 - now - most) if kind == "time" else 0.0


class Guard(StrEnum):
    """How an offered state of a part stands to the archived one."""

    NEWER = "newer"
    SAME = "same"
    OLDER = "older"
    TIE = "tie"
    """Equal version, other content, both told by events: only the source can say which holds."""


def guard(present: Stamp | None, offered: Stamp, *, can_read: bool) -> Guard:
    """Compares an offered state with the archived one; ``can_read`` says whether the source can settle a tie."""
    if present is None:
        return Guard.NEWER
    mine, theirs = (present.epoch, present.version), (offered.epoch, offered.version)
    if theirs != mine:
        return Guard.NEWER if theirs > mine else Guard.OLDER
    if present.content_hash == offered.content_hash:
        return Guard.SAME
    if present.ticket != offered.ticket:
        return Guard.NEWER if offered.ticket > present.ticket else Guard.OLDER
    if can_read and offered.ticket == 0:
        return Guard.TIE
    return Guard.NEWER if offered.content_hash > present.content_hash else Guard.OLDER


Action = Literal["create", "update", "delete"]


@dataclass(slots=True)
class Change:
    """A part's offered state: from an event (with its ``seq``) or from a read (``seq`` None)."""

    key: str
    part: str
    action: Action
    stamp: Stamp
    data: dict[str, Any] | None
    group: str | None = None
    seq: int | None = None

    @property
    def deleted(self) -> bool:
        return self.action == "delete"


class Verdict(StrEnum):
    """What became of a change."""

    ACCEPTED = "accepted"
    KEPT = "kept"
    """Stored under a tombstone, which it does not revive."""
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"
    TIE = "tie"
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


@dataclass(slots=True)
class RecordState:
    """A record as the guard sees it; ``revision`` 0 is a record that is not here."""

    revision: int = 0
    group: str | None = None
    deleted: bool = False
    ready: bool = False
    parts: dict[str, Stamp] = field(default_factory=dict)


def decide(record: RecordState, change: Change, rules: Rules) -> Verdict:
    """Judges one change and applies it to ``record`` where it is accepted or kept.

    A read that confirms what events told leaves its ticket, so that later events of that version do not overrule it.
    (One that confirms an earlier read leaves none: a full sync of unchanged data writes nothing.)
    """
    verdict = _judge(record, change, rules)
    if verdict in (Verdict.ACCEPTED, Verdict.KEPT):
        _apply(record, change, rules, revive=verdict is Verdict.ACCEPTED)
    elif verdict is Verdict.DUPLICATE and change.stamp.ticket and not record.parts[change.part].ticket:
        record.parts[change.part] = change.stamp
    return verdict


def _judge(record: RecordState, change: Change, rules: Rules) -> Verdict:
    is_owner = change.part == rules.owner
    if rules.owner not in record.parts and change.stamp.ticket == 0:
        needs_record = change.action == "update" or (change.action == "create" and not is_owner)
        if needs_record and rules.on_missing != "upsert":
            return Verdict.FETCH if rules.on_missing == "fetch" else Verdict.MISSING
    match guard(record.parts.get(change.part), change.stamp, can_read=change.part in rules.readable):
        case Guard.OLDER:
            return Verdict.SUPERSEDED
        case Guard.SAME:
            return Verdict.DUPLICATE
        case Guard.TIE:
            return Verdict.TIE
    if is_owner and not change.deleted and not (change.group or record.group):
        return Verdict.NO_GROUP
    return Verdict.KEPT if record.deleted and not is_owner else Verdict.ACCEPTED


def _apply(record: RecordState, change: Change, rules: Rules, *, revive: bool) -> None:
    record.parts[change.part] = change.stamp
    if change.part == rules.owner:
        record.deleted = change.deleted
        record.group = change.group or record.group
    if revive:
        record.revision += 1
    record.ready = rules.owner in record.parts and (record.deleted or rules.required <= record.parts.keys())
