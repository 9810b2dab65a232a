"""The due events of a drain's batch as the ledger gives them out, and what the drain hands back for them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sync_orchestrator.core.ports import Json

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Row

    from sync_orchestrator.core.version_guard import Action

CAPTURE_ORIGIN = "capture"
"""The origin of events that a source's log told. Reads of the source see their changes before they are recorded."""

TWO_WAY_ORIGIN = "two_way"
"""The origin of events that have a record read because a push has changed it, or found it changed."""

ANNOUNCED_ORIGINS = frozenset({"notification", CAPTURE_ORIGIN, TWO_WAY_ORIGIN})
"""Origins of events by which a source itself says that a record is deleted; of others a deletion is inferred."""

Awaiting = Literal["clock", "source", "record", "deletions"]
"""What an event waits for: its version to be in the past, its source, its record, or room under a cap of deletions."""


@dataclass(frozen=True, slots=True)
class DueEvent:
    """An event that is due and not archived yet.

    Attributes:
        is_thin: It names a key only; the part is read from its source.
        ask_source: A full sync was completed since it came, so the source is read whatever the event says.
        absent_at: When its source first contradicted it.
        read_sequence: The number of the read that brought it; 0 for a notification.
        now: The database's clock when it was taken, in seconds since 1970.
    """

    seq: int
    source: str
    entity: str
    key: str
    group: str | None
    action: Action
    epoch: int
    version: int
    is_thin: bool
    data: Json | None
    attempts: int
    absent_at: datetime | None
    ask_source: bool
    origin: str
    read_sequence: int
    received_at: datetime
    now: float

    @classmethod
    def from_row(cls, row: Row[Any]) -> DueEvent:
        """Reads a row of ``SELECT_DUE_EVENTS``."""
        return cls(
            seq=row.seq,
            source=row.source,
            entity=row.entity,
            key=row.key,
            group=row.group_key,
            action=row.action,
            epoch=row.epoch,
            version=row.version,
            is_thin=row.thin,
            data=row.data,
            attempts=row.attempts,
            absent_at=row.absent_at,
            ask_source=row.ask_source,
            origin=row.origin,
            read_sequence=row.read_sequence,
            received_at=row.received_at,
            now=row.now,
        )


@dataclass(frozen=True, slots=True)
class EventLease:
    """The lease of a batch of events: its token, its length, and the process whose heartbeat it depends on."""

    token: int
    seconds: float
    holder: int | None


@dataclass(frozen=True, slots=True)
class ArchivedEvent:
    """An event that is archived; ``revision`` of its record holds it."""

    seq: int
    revision: int


@dataclass(frozen=True, slots=True)
class SupersededEvent:
    """An event that has nothing to bring any more, and why."""

    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """An event that was not archived.

    Attributes:
        state: ``dead`` once an operator has to look at it.
        attempts: Attempts spent so far.
        wait_seconds: When it is due again; None for never, by time alone.
        awaiting: What it waits for; also a dead event may be woken by that.
        is_contradicted: Its source contradicts it.
    """

    seq: int
    state: Literal["waiting", "dead"]
    attempts: int
    wait_seconds: float | None
    error: str
    awaiting: Awaiting | None = None
    is_contradicted: bool = False
