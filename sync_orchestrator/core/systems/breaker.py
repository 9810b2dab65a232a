"""Whether a system may be called now: pauses, what it asked for itself, the circuit breaker and the shared rate.

Not here: what opens and closes the breaker (``settle.py``, where the outcomes are).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.systems import queries

if TYPE_CHECKING:
    from sync_orchestrator.config import ThirdPartySystem

_LOOK_AFTER = 1.0
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


def gate(connection: Connection, name: str, system: ThirdPartySystem) -> Gate:
    """Asks whether pushes may go out; a probe is given to one asker only, so the caller must commit."""
    state = run(connection, queries.SELECT_SYSTEM, name=name)[0]
    if state.suspended_at is not None:
        return Gate(wait=5.0, paused=bool(state.paused), suspended=True)
    if state.paused:
        return Gate(wait=5.0, paused=True)
    if state.blocked_for is not None and state.blocked_for > 0:
        return Gate(wait=state.blocked_for, open=state.open_since is not None)
    if state.open_since is None:
        return Gate()
    if state.probe_in > 0:
        return Gate(wait=state.probe_in, open=True)
    state = run(connection, queries.LOCK_SYSTEM, name=name)[0]
    if state.open_since is None:
        return Gate()
    if state.probe_in > 0:  # another asker was given it
        return Gate(wait=state.probe_in, open=True)
    run(connection, queries.OPEN_BREAKER, name=name, wait=state.probe_wait or system.breaker.probe_after)
    return Gate(probe=True, open=True)


def is_open(connection: Connection, name: str) -> bool:
    """Whether the breaker is open, or the third party paused or suspended."""
    return closed_reason(connection, name) is not None


def closed_reason(connection: Connection, name: str) -> str | None:
    """Why nothing may be sent to a third party now, or None."""
    state = run(connection, queries.SELECT_SYSTEM, name=name)[0]
    if state.suspended_at is not None:
        return f"pushes to {name} are suspended ({state.suspended_reason}): run `sync-orchestrator adopt`"
    if state.open_since is not None or state.paused:
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
        """Returns the seconds left; reads the database where the last look is too old."""
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + _LOOK_AFTER
            seconds, self.reason, refused_ago = await asyncio.to_thread(self._told)
            self._until = now + seconds
            if refused_ago is not None:
                self._refused_at = max(now - refused_ago, self._refused_at or now - refused_ago)
        return await super().left()

    async def ask(self, seconds: float, reason: str = "") -> None:
        """Holds calls off for some seconds, on all machines."""
        await super().ask(seconds, reason)
        await asyncio.to_thread(self._tell, seconds, reason)

    async def refused(self) -> None:
        """Notes that a call was refused, for all machines and at most once in a while."""
        await super().refused()
        now = time.monotonic()
        if now - self._refusal_noted >= _LOOK_AFTER:
            self._refusal_noted = now
            await asyncio.to_thread(self._tell_refused)

    def _told(self) -> tuple[float, str, float | None]:
        with self._engine.begin() as connection:
            for row in run(connection, queries.SECONDS_HELD_OFF, name=self._name):
                return float(row.seconds or 0.0), row.reason or "", row.refused_ago
        return 0.0, "", None

    def _tell(self, seconds: float, reason: str) -> None:
        with self._engine.begin() as connection:
            run(connection, queries.HOLD_OFF_UNTIL, name=self._name, seconds=seconds, reason=reason)

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
