"""Whether a system may be called now: pauses, what it asked for itself, the circuit breaker and the shared rate.

Not here: what opens and closes the breaker (``settle.py``, where the outcomes are).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine

from sync_orchestrator.config import ThirdPartySystem
from sync_orchestrator.core.sql import run
from sync_orchestrator.core.statements import push as statements

_LOOK_AFTER = 1.0


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
    state = run(connection, statements.SYSTEM, name=name)[0]
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
    state = run(connection, statements.SYSTEM_LOCKED, name=name)[0]
    if state.open_since is None:
        return Gate()
    if state.probe_in > 0:  # another asker was given it
        return Gate(wait=state.probe_in, open=True)
    run(connection, statements.OPEN, name=name, wait=state.probe_wait or system.breaker.probe_after)
    return Gate(probe=True, open=True)


def is_open(connection: Connection, name: str) -> bool:
    """Whether the breaker is open, or the third party paused or suspended."""
    return closed_reason(connection, name) is not None


def closed_reason(connection: Connection, name: str) -> str | None:
    """Why nothing may be sent to a third party now, or None."""
    state = run(connection, statements.SYSTEM, name=name)[0]
    if state.suspended_at is not None:
        return f"pushes to {name} are suspended ({state.suspended_reason}): run `sync-orchestrator adopt`"
    if state.open_since is not None or state.paused:
        return f"the third party '{name}' is paused, or its breaker is open"
    return None


def open_ones(connection: Connection) -> frozenset[str]:
    """The third parties whose breakers are open."""
    return frozenset(row.name for row in run(connection, statements.OPEN_ONES))


class HoldOff:
    """The time until which a system asks to be left alone, known to this process."""

    def __init__(self) -> None:
        self._until = 0.0

    async def left(self) -> float:
        """Seconds to hold off all calls for; not above zero where there is no need to."""
        return self._until - time.monotonic()

    async def ask(self, seconds: float) -> None:
        """The system asked to be left alone for so long."""
        self._until = max(self._until, time.monotonic() + seconds)

    async def refused(self) -> None:
        """The system refused a call for coming too fast."""


class SharedHoldOff(HoldOff):
    """The same for all runs on all machines, which learn of it within a second."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__()
        self._engine = engine
        self._name = name
        self._look_again = 0.0
        self._refused = 0.0

    async def left(self) -> float:
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + _LOOK_AFTER
            self._until = now + await asyncio.to_thread(self._told)
        return await super().left()

    async def ask(self, seconds: float) -> None:
        await super().ask(seconds)
        await asyncio.to_thread(self._tell, seconds)

    async def refused(self) -> None:
        now = time.monotonic()
        if now - self._refused >= _LOOK_AFTER:
            self._refused = now
            await asyncio.to_thread(self._tell_refused)

    def _told(self) -> float:
        with self._engine.begin() as connection:
            return max((row.seconds for row in run(connection, statements.HELD_OFF, name=self._name)), default=0.0)

    def _tell(self, seconds: float) -> None:
        with self._engine.begin() as connection:
            run(connection, statements.NOT_BEFORE, name=self._name, seconds=seconds)

    def _tell_refused(self) -> None:
        with self._engine.begin() as connection:
            run(connection, statements.REFUSED, name=self._name)


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
            row = run(connection, statements.RESERVE, name=name, n=chunk, step=step)[0]
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
