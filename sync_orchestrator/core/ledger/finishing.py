"""Finishes events with their records, and has them share the fate of records whose push failed or is tried again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class FinishedEvents:
    """How many events were finished in which way; ``slowest_seconds`` is the longest from received to finished."""

    done: int = 0
    superseded: int = 0
    discarded: int = 0
    slowest_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class FailedRecord:
    """A record whose push failed: its spent attempts, and in how many seconds it is due again (None: dead)."""

    entity: str
    key: str
    attempts: int
    wait_seconds: float | None
    error: str


def finish_reached(connection: Connection, entity: str, keys: Iterable[str]) -> FinishedEvents:
    """Finishes the events of records that the acknowledged revision has reached."""
    counts, slowest = {"done": 0, "superseded": 0, "discarded": 0}, 0.0
    for row in run(connection, queries.FINISH_REACHED, entity=entity, keys=list(keys)):
        counts[row.what] += row.n
        slowest = max(slowest, row.slowest)
    return FinishedEvents(counts["done"], counts["superseded"], counts["discarded"], slowest)


def note_push_failed(connection: Connection, records: Sequence[FailedRecord]) -> None:
    """Has the events of records whose push failed wait, or die, with their records."""
    if records:
        run(
            connection,
            queries.NOTE_PUSH_FAILED,
            entity=[record.entity for record in records],
            key=[record.key for record in records],
            state=["dead" if record.wait_seconds is None else "waiting" for record in records],
            attempts=[record.attempts for record in records],
            wait=[record.wait_seconds for record in records],
            error=[record.error for record in records],
        )


def redrive_archived_events(connection: Connection, entity: str, keys: Iterable[str]) -> None:
    """Has the archived events of records that are tried again wait for that, with fresh attempts."""
    run(connection, queries.REDRIVE_ARCHIVED_EVENTS, entity=entity, keys=sorted(keys))


def release_events_of_system(connection: Connection, system: str) -> None:
    """Gives back to events the attempts that the failures spent by which a third party's breaker opened."""
    run(connection, queries.RELEASE_EVENTS_OF_SYSTEM, system=system)


def discard_dead_events(connection: Connection, seqs: Sequence[int], reason: str) -> int:
    """Ends dead events as discarded, with the reason kept; returns how many of them were dead."""
    return sum(row.n for row in run(connection, queries.DISCARD_EVENTS, seqs=list(seqs), reason=reason))


def find_dead_records_of_events(connection: Connection, seqs: Sequence[int]) -> dict[str, list[str]]:
    """Returns, by entity, the keys of the records whose dead events are among these and were archived."""
    keys: dict[str, list[str]] = {}
    for row in run(connection, queries.SELECT_DEAD_RECORDS_OF_EVENTS, seqs=list(seqs)):
        keys.setdefault(row.entity, []).append(row.key)
    return keys


def finish_reread(connection: Connection, entity: str, key: str, parts: Sequence[str]) -> None:
    """Ends the events of a record as superseded whose parts have just been read from their sources."""
    run(connection, queries.FINISH_REREAD, entity=entity, key=key, parts=list(parts))
