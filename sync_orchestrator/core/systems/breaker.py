"""Whether a system may be called now: pauses, what it asked for itself, the circuit breaker and the shared rate.

Pushes that end open and close the breaker: ``record_failures`` and ``record_success`` judge them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.systems import queries
from sync_orchestrator.core.systems.call_limit import is_unanswered
from sync_orchestrator.errors import CallFailed, Failure

if TYPE_CHECKING:
    from sqlalchemy import Row

    from sync_orchestrator.config import ThirdPartySystem

ALERT = "breaker_open"

_LOOK_AGAIN_SECONDS = 1.0
_SUCCESS_NOTED_SECONDS = 10.0
_RECENT_SECONDS = 60.0
_SILENT_TIMEOUTS = 2
UNCONFIRMED_SECONDS = 5.0
"""A RateLimit header is believed for so long at a time while nothing was refused."""
CONFIRMED_SECONDS = 3600.0
"""A refusal confirms these headers for so long."""


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


def gate(connection: Connection, name: str, system: ThirdPartySystem) -> Gate:
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


def hold_off(connection: Connection, name: str, seconds: float, reason: str) -> None:
    """Has all processes leave a system alone for some seconds, unless they do for longer already."""
    run(connection, queries.HOLD_OFF_UNTIL, name=name, seconds=seconds, reason=reason)


def record_success(connection: Connection, name: str, state: SystemState) -> None:
    """Notes that a third party did what it was asked, which closes its breaker."""
    run(connection, queries.CLEAR_BREAKER_FAILURES, system=name)
    if state.succeeded_ago is None or state.succeeded_ago > _SUCCESS_NOTED_SECONDS:
        run(connection, queries.NOTE_SUCCESS, name=name)
    if state.is_open:
        run(connection, queries.CLOSE_BREAKER, name=name)
        alerts.resolve(connection, ALERT, name)


def record_failures(
    connection: Connection,
    name: str,
    system: ThirdPartySystem,
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
        and any(is_unanswered(failed.failure) for failed in failures)
    )
    is_unproven = any(_takes_last_attempt(failed, times, failing, state) for failed in failures)
    if failing < system.breaker.failures and not is_unproven and not is_silent:
        return False
    run(connection, queries.OPEN_BREAKER, name=name, wait=system.breaker.probe_after)
    alerts.tell(
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


class HoldOff:
    """The time until which a system asks to be left alone, known to this process; ``reason`` says why.

    What a RateLimit header of a good answer says is believed for 5 seconds, and in full only while a refused call is
    not an hour ago. A call that is carried out within the time that the header named for nothing contradicts it: such
    headers are ignored until the next refusal.
    """

    def __init__(self) -> None:
        self._until = 0.0
        self._claim: tuple[float, float] | None = None
        self._doubted = False
        self._refused_at: float | None = None
        self.reason = ""

    async def left(self) -> float:
        """Seconds to hold off all calls for; not above zero where there is no need to."""
        return self._until - time.monotonic()

    async def ask(self, seconds: float, reason: str = "") -> None:
        """The system asked to be left alone for so long."""
        until = time.monotonic() + seconds
        if until >= self._until:
            self._until, self.reason = until, reason

    async def ask_by_header(self, seconds: float, claimed: float, reason: str) -> None:
        """A header of a good answer says that nothing remains for ``claimed`` seconds; obeyed for ``seconds``."""
        if self._doubted or seconds <= 0:
            return
        now = time.monotonic()
        if self._claim is None or now + claimed > self._claim[1]:
            self._claim = (now if self._claim is None or now >= self._claim[1] else self._claim[0]), now + claimed
        if self._refused_at is None or now - self._refused_at > CONFIRMED_SECONDS:
            if seconds > UNCONFIRMED_SECONDS:
                reason = f"{reason}; no call was refused, so for {UNCONFIRMED_SECONDS:g} s at a time"
            seconds = min(seconds, UNCONFIRMED_SECONDS)
        await self.ask(seconds, reason)

    def served(self, began: float) -> None:
        """A call that began at this monotonic time was not refused for coming too fast."""
        if self._claim is not None and self._claim[0] < began < self._claim[1]:
            self._claim, self._doubted = None, True

    async def refused(self) -> None:
        """The system refused a call for coming too fast."""
        self._refused_at = time.monotonic()
        self._claim, self._doubted = None, False


class SharedHoldOff(HoldOff):
    """The same for all runs on all machines, which learn of it within a second."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__()
        self._engine = engine
        self._name = name
        self._look_again = 0.0
        self._refusal_noted = 0.0

    async def left(self) -> float:
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + _LOOK_AGAIN_SECONDS
            seconds, self.reason, refused_ago = await asyncio.to_thread(self._told)
            self._until = now + seconds
            if refused_ago is not None:
                self._refused_at = max(now - refused_ago, self._refused_at or now - refused_ago)
        return await super().left()

    async def ask(self, seconds: float, reason: str = "") -> None:
        await super().ask(seconds, reason)
        await asyncio.to_thread(self._tell, seconds, reason)

    async def refused(self) -> None:
        await super().refused()
        now = time.monotonic()
        if now - self._refusal_noted >= _LOOK_AGAIN_SECONDS:
            self._refusal_noted = now
            await asyncio.to_thread(self._tell_refused)

    def _told(self) -> tuple[float, str, float | None]:
        with self._engine.begin() as connection:
            for row in run(connection, queries.SECONDS_HELD_OFF, name=self._name):
                return float(row.seconds or 0.0), row.reason or "", row.refused_ago
        return 0.0, "", None

    def _tell(self, seconds: float, reason: str) -> None:
        with self._engine.begin() as connection:
            hold_off(connection, self._name, seconds, reason)

    def _tell_refused(self) -> None:
        with self._engine.begin() as connection:
            run(connection, queries.LOWER_RATE_SHARE, name=self._name)


def shared_rate(engine: Engine, name: str, rate: float) -> Callable[[], Awaitable[None]]:
    """A wait before each call that keeps all runs on all machines together below ``rate`` calls a second.

    Room is reserved in the database, a twentieth of a second's worth at a time. Where calls are refused all the same,
    the rate is lowered for all (``SharedHoldOff.refused``) and grows back.
    """
    chunk = max(1, int(rate / 20))
    step = 1.0 / rate
    locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
    left: list[float] = []

    def reserve() -> tuple[float, float]:
        with engine.begin() as connection:
            row = run(connection, queries.RESERVE_CALL, name=name, n=chunk, step=step)[0]
            return float(row.wait), float(row.step)

    async def before_call() -> None:
        loop = asyncio.get_running_loop()
        async with locks.setdefault(loop, asyncio.Lock()):
            while not left:
                wait, apart = await asyncio.to_thread(reserve)
                start = loop.time() + wait
                left.extend(start + n * apart for n in reversed(range(chunk)))
            at = left.pop()
        if (delay := at - loop.time()) > 0:
            await asyncio.sleep(delay)

    return before_call
