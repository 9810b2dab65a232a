"""The states of a change event and the moves between them, written once.

    received ─▶ pending ──claim──▶ leased ──the third party has it──▶ done
                   ▲                 │ ──a newer version is archived, or the source has no such record──▶ superseded
                   │ lease over,     │
                   │ drain ended     │ ──a step failed, or its record is not here──▶ waiting ──due──▶ leased
                   │                 │ ──permanent rejection, or out of attempts──▶ dead
                   └── re-drive, compensation: from waiting and dead
                                       discarded ◀──a person, with a reason── dead

What the archive alone decides it decides in the transaction of the claim: from pending straight to where it belongs.

received = pending + leased + waiting + done + superseded + dead + discarded, at all times.
"""

from __future__ import annotations

from enum import StrEnum

from sync_orchestrator.errors import UsageError


class State(StrEnum):
    """Where an event is. At any time it is in exactly one state."""

    PENDING = "pending"
    LEASED = "leased"
    WAITING = "waiting"
    DEAD = "dead"
    DONE = "done"
    SUPERSEDED = "superseded"
    DISCARDED = "discarded"


ACTIVE = (State.PENDING, State.LEASED, State.WAITING, State.DEAD)
FINISHED = (State.DONE, State.SUPERSEDED, State.DISCARDED)

MOVES: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.LEASED, State.WAITING, State.DEAD, State.DONE, State.SUPERSEDED}),
    State.LEASED: frozenset({State.PENDING, State.WAITING, State.DEAD, State.DONE, State.SUPERSEDED}),
    State.WAITING: frozenset({State.PENDING, State.LEASED, State.DEAD, State.DONE, State.SUPERSEDED}),
    State.DEAD: frozenset({State.PENDING, State.DISCARDED, State.DONE, State.SUPERSEDED}),
    State.DONE: frozenset(),
    State.SUPERSEDED: frozenset(),
    State.DISCARDED: frozenset(),
}
"""Pending events move on without a lease of their own once they are archived: their record's push decides."""


def require_discard_reason(reason: str) -> None:
    """Raises UsageError for a discard without a reason."""
    if not reason.strip():
        raise UsageError("a discard needs a reason")


# The upper ends of the classes of latency, in seconds.
LATENCY_BUCKETS_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
