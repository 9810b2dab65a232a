"""Whether a system may be called now: pauses, suspensions, what it asked for itself, and the circuit breaker.

Pushes that end open and close the breaker: ``record_failures`` and ``record_success`` judge them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.systems import queries
from sync_orchestrator.core.systems.call_limit import has_no_response
from sync_orchestrator.errors import CallFailed, Failure

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

    from sync_orchestrator.config import ThirdPartySettings

ALERT = "breaker_open"

_SUCCESS_NOTED_SECONDS = 10.0
_RECENT_SECONDS = 60.0
_SILENT_TIMEOUTS = 2


@dataclass(frozen=True, slots=True)
class Gate:
    """``wait`` None: go on. Otherwise seconds to wait; ``probe``: one record may be pushed as a probe."""

    wait: float | None = None
    probe: bool = False
    open: bool = False
    paused: bool = False
    suspended: bool = False


@dataclass(frozen=True, slots=True)
class SystemState:
    """What the database has of a third party: pause, suspension, breaker and hold-off."""

    is_paused: bool
    is_open: bool
    suspended_reason: str | None
    """Why pushes are suspended; None where they are not."""
    probe_wait: float | None
    """The wait between two probes of an open breaker, in seconds."""
    probe_in: float
    """Seconds until the next probe; not above zero where it is due."""
    blocked_for: float
    """For how many seconds the system asks to be left alone; not above zero where it does not."""
    succeeded_ago: float | None
    """Seconds since the last success that was noted; None for never."""

    @classmethod
    def from_row(cls, row: Row[Any]) -> SystemState:
        """Makes one from a row of the database."""
        return cls(
            is_paused=bool(row.paused),
            is_open=row.open_since is not None,
            suspended_reason=None if row.suspended_at is None else str(row.suspended_reason),
            probe_wait=row.probe_wait,
            probe_in=row.probe_in or 0.0,
            blocked_for=row.blocked_for or 0.0,
            succeeded_ago=row.succeeded_ago,
        )


@dataclass(frozen=True, slots=True)
class RecordFailure:
    """A failed push of one record, as far as it counts for the breaker."""

    entity: str
    key: str
    attempts: int
    """The attempts that the record had spent before."""
    failure: CallFailed
    retries: int
    """The retries that the configuration gives it."""
    is_last: bool
    """No attempt is left."""


def read_system(connection: Connection, name: str, *, is_locked: bool = False) -> SystemState:
    """The state of a third party; ``is_locked`` keeps it until the end of the transaction."""
    query = queries.LOCK_SYSTEM if is_locked else queries.SELECT_SYSTEM
    return SystemState.from_row(run(connection, query, name=name)[0])


def check_gate(connection: Connection, name: str, system: ThirdPartySettings) -> Gate:
    """Returns whether pushes may go out; a probe is given to one caller only, so the caller must commit."""
    state = read_system(connection, name)
    if state.suspended_reason is not None:
        return Gate(wait=5.0, paused=state.is_paused, suspended=True)
    if state.is_paused:
        return Gate(wait=5.0, paused=True)
    if state.blocked_for > 0:
        return Gate(wait=state.blocked_for, open=state.is_open)
    if not state.is_open:
        return Gate()
    if state.probe_in > 0:
        return Gate(wait=state.probe_in, open=True)
    state = read_system(connection, name, is_locked=True)
    if not state.is_open:
        return Gate()
    if state.probe_in > 0:  # another caller was given it
        return Gate(wait=state.probe_in, open=True)
    run(connection, queries.OPEN_BREAKER, name=name, wait=state.probe_wait or system.breaker.probe_after)
    return Gate(probe=True, open=True)


def record_success(connection: Connection, name: str, state: SystemState) -> None:
    """Notes that a third party did what it was asked, which closes its breaker."""
    run(connection, queries.CLEAR_BREAKER_FAILURES, system=name)
    if state.succeeded_ago is None or state.succeeded_ago > _SUCCESS_NOTED_SECONDS:
        run(connection, queries.NOTE_SUCCESS, name=name)
    if state.is_open:
        run(connection, queries.CLOSE_BREAKER, name=name)
        alerts.resolve_alert(connection, ALERT, name)


def record_failures(
    connection: Connection,
    name: str,
    system: ThirdPartySettings,
    state: SystemState,
    failures: Sequence[RecordFailure],
) -> bool:
    """Counts distinct records; opens the breaker, or puts off the next probe where it is open.

    It opens, too, before a failure that says nothing about its record takes that record's last attempt while nothing
    else shows the third party to be well: in an outage in which little changes, the system waits and not the records.
    A record that failed as often since the last success counts alike, though a full sync or a new revision gave it a
    fresh set of attempts meanwhile.
    And it opens if calls have had no response for ``_SILENT_TIMEOUTS`` times the timeout: by then few calls are made
    at a time, with pauses between them, so that the number of failures would take many minutes to be reached.

    Args:
        connection: A connection within a transaction.
        name: The third party.
        system: Its settings.
        state: Its state, locked.
        failures: Pushes that failed, of one record each.

    Returns:
        Whether the breaker is open now because of these failures.
    """
    if not failures:
        return False
    if state.is_open:
        wait = min(system.breaker.probe_cap, (state.probe_wait or system.breaker.probe_after) * 2)
        run(connection, queries.OPEN_BREAKER, name=name, wait=wait)
        return True
    rows = run(
        connection,
        queries.ADD_BREAKER_FAILURES,
        system=name,
        entity=[failed.entity for failed in failures],
        key=[failed.key for failed in failures],
        attempts=[failed.attempts for failed in failures],
    )
    times = {(row.entity, row.key): int(row.times) for row in rows}
    counted = run(connection, queries.COUNT_BREAKER_FAILURES, system=name)[0]
    failing = int(counted.records)
    is_silent = (
        failing > 1
        and counted.seconds >= _SILENT_TIMEOUTS * system.timeout
        and any(has_no_response(failed.failure) for failed in failures)
    )
    is_unproven = any(_takes_last_attempt(failed, times, failing, state) for failed in failures)
    if failing < system.breaker.failures and not is_unproven and not is_silent:
        return False
    run(connection, queries.OPEN_BREAKER, name=name, wait=system.breaker.probe_after)
    alerts.raise_alert(
        connection,
        ALERT,
        name,
        f"{name} does not answer as it should: pushes to it wait",
        examples=[str(failures[-1].failure)],
    )
    return True


def _takes_last_attempt(
    failed: RecordFailure, times: dict[tuple[str, str], int], failing: int, state: SystemState
) -> bool:
    """Whether a failure that says nothing about its record would take its last attempt, with nothing to prove it."""
    failed_times = times[failed.entity, failed.key]
    is_last = failed.is_last or failed_times > failed.retries
    return is_last and _says_nothing(failed.failure, failing) and not _is_proven_well(failed, failed_times, state)


def _says_nothing(failure: CallFailed, failing: int) -> bool:
    """Whether a failure says nothing about the record; a 5xx may, unless other records have it as well."""
    if failure.kind is Failure.PERMANENT:
        return False
    return failure.about_system or failure.kind is Failure.AUTH or failure.status is None or failing > 1


def _is_proven_well(failed: RecordFailure, times: int, state: SystemState) -> bool:
    """Whether the third party did what it was asked since the record failed before, or just before it failed."""
    if times > 1:
        return False
    recently = state.succeeded_ago is not None and state.succeeded_ago < _RECENT_SECONDS
    return failed.attempts > 0 or recently


def is_open(connection: Connection, name: str) -> bool:
    """Whether the breaker is open, or the third party paused or suspended."""
    return closed_reason(connection, name) is not None


def closed_reason(connection: Connection, name: str) -> str | None:
    """Why nothing may be sent to a third party now, or None."""
    state = read_system(connection, name)
    if state.suspended_reason is not None:
        return f"pushes to {name} are suspended ({state.suspended_reason}): run `sync-orchestrator adopt`"
    if state.is_open or state.is_paused:
        return f"the third party '{name}' is paused, or its breaker is open"
    return None


def open_ones(connection: Connection) -> frozenset[str]:
    """The third parties whose breakers are open."""
    return frozenset(row.name for row in run(connection, queries.LIST_OPEN_BREAKERS))
