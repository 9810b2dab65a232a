"""Due events of the ledger: taken by a drain, leased while their sources are read, and handed back as they ended.

A batch of events is settled by the transaction that took it, where the archive alone decides, or by the holder of its
lease: functions that settle events take the lease's token for the latter (``held_token``), and None for the former.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger import queries
from sync_orchestrator.core.ledger.event_rows import (
    ArchivedEvent,
    DueEvent,
    EventLease,
    FailedEvent,
    SupersededEvent,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection


def select_due_events(connection: Connection, entities: Sequence[str], max_count: int) -> list[DueEvent]:
    """Returns due events that no drain holds, longest due first. They are this transaction's until it ends."""
    rows = run(connection, queries.SELECT_DUE_EVENTS, entities=list(entities), most=max_count)
    return [DueEvent.from_row(row) for row in rows]


def claim_events(connection: Connection, seqs: Sequence[int], lease: EventLease) -> None:
    """Leases events, so that they stay the drain's while no transaction is open."""
    run(
        connection,
        queries.CLAIM_EVENTS,
        token=lease.token,
        lease=lease.seconds,
        holder=lease.holder,
        seqs=list(seqs),
    )


def mark_archived(
    connection: Connection, events: Sequence[ArchivedEvent], lease: EventLease, *, held_token: int | None
) -> list[str]:
    """Gives events the revisions that hold them: from here on their records' pushes decide about them.

    Returns:
        The keys of records that the third party has already, or that were discarded, sorted.
    """
    reached = run(
        connection,
        queries.MARK_ARCHIVED,
        held=held_token,
        token=lease.token,
        lease=lease.seconds,
        holder=lease.holder,
        seq=[event.seq for event in events],
        revision=[event.revision for event in events],
    )
    return sorted(row.key for row in reached)


def finish_superseded(connection: Connection, events: Sequence[SupersededEvent], *, held_token: int | None) -> int:
    """Moves superseded events to the history; returns how many of them were still ours."""
    rows = run(
        connection,
        queries.FINISH_SUPERSEDED,
        held=held_token,
        seq=[event.seq for event in events],
        reason=[event.reason for event in events],
    )
    return sum(row.n for row in rows)


def mark_failed(connection: Connection, events: Sequence[FailedEvent], *, held_token: int | None) -> set[int]:
    """Lets events wait or die; returns the numbers of those that were still ours."""
    rows = run(
        connection,
        queries.MARK_FAILED,
        held=held_token,
        seq=[event.seq for event in events],
        state=[event.state for event in events],
        attempts=[event.attempts for event in events],
        wait=[event.wait_seconds for event in events],
        error=[event.error for event in events],
        awaiting=[event.awaiting for event in events],
        absent=[event.is_contradicted for event in events],
    )
    return {row.seq for row in rows}


def wake_waiting_events(connection: Connection, entity: str, keys: Sequence[str]) -> None:
    """Makes events due that wait for these records, which have arrived."""
    run(connection, queries.WAKE_WAITING_EVENTS, entity=entity, keys=list(keys))


def delete_event_ids(connection: Connection, seqs: Sequence[int]) -> None:
    """Deletes the ids of events whose source was read, so that the same notification is a new one (rule 31)."""
    run(connection, queries.DELETE_EVENT_IDS, seqs=list(seqs))


def release_events(connection: Connection, tokens: Collection[int]) -> None:
    """Gives back the events that are still leased under these tokens."""
    run(connection, queries.RELEASE_EVENTS, tokens=sorted(tokens))


def release_expired_events(connection: Connection) -> None:
    """Gives back events whose lease is over, or whose holder is gone."""
    run(connection, queries.RELEASE_EXPIRED_EVENTS)


def seconds_until_next_event(connection: Connection, entities: Sequence[str]) -> float | None:
    """Returns the seconds until the next event of these entities is due, negative if it is overdue; None for none."""
    seconds = run(connection, queries.SECONDS_UNTIL_NEXT_EVENT, entities=list(entities))[0].seconds
    return None if seconds is None else float(seconds)
