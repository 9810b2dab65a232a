"""Keeps calls to a system apart: the time for which it asks to be left alone, and the rate that all processes share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.systems import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

UNCONFIRMED_SECONDS = 5.0
"""For how long a RateLimit header is believed at a time while nothing was refused."""

CONFIRMED_SECONDS = 3600.0
"""For how long a refusal confirms these headers."""

_LOOK_AGAIN_SECONDS = 1.0


def hold_off(connection: Connection, name: str, seconds: float, reason: str) -> None:
    """Has all processes leave a system alone for some seconds, unless they do for longer already."""
    run(connection, queries.HOLD_OFF_UNTIL, name=name, seconds=seconds, reason=reason)


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

    async def seconds_left(self) -> float:
        """Seconds to hold off all calls for; not above zero where there is no need to."""
        return self._until - time.monotonic()

    async def hold_off_calls(self, seconds: float, reason: str = "") -> None:
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
        await self.hold_off_calls(seconds, reason)

    def note_served(self, began: float) -> None:
        """A call that began at this monotonic time was not refused for coming too fast."""
        if self._claim is not None and self._claim[0] < began < self._claim[1]:
            self._claim, self._doubted = None, True

    async def note_refused(self) -> None:
        """The system refused a call for coming too fast."""
        self._refused_at = time.monotonic()
        self._claim, self._doubted = None, False


class SharedHoldOff(HoldOff):
    """A hold-off that all processes on all machines share through the database: each learns of it within a second."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__()
        self._engine = engine
        self._name = name
        self._read_again_at = 0.0
        self._refusal_written_at = 0.0

    async def seconds_left(self) -> float:
        """Returns the seconds left; reads the database where the last look is too old."""
        now = time.monotonic()
        if now >= self._read_again_at:
            self._read_again_at = now + _LOOK_AGAIN_SECONDS
            seconds, self.reason, refused_ago = await asyncio.to_thread(self._read_hold_off)
            self._until = now + seconds
            if refused_ago is not None:
                self._refused_at = max(now - refused_ago, self._refused_at or now - refused_ago)
        return await super().seconds_left()

    async def hold_off_calls(self, seconds: float, reason: str = "") -> None:
        """Holds calls off for some seconds, on all machines."""
        await super().hold_off_calls(seconds, reason)
        await asyncio.to_thread(self._write_hold_off, seconds, reason)

    async def note_refused(self) -> None:
        """Notes that a call was refused, for all machines and at most once in a while."""
        await super().note_refused()
        now = time.monotonic()
        if now - self._refusal_written_at >= _LOOK_AGAIN_SECONDS:
            self._refusal_written_at = now
            await asyncio.to_thread(self._write_refusal)

    def _read_hold_off(self) -> tuple[float, str, float | None]:
        with self._engine.begin() as connection:
            for row in run(connection, queries.SECONDS_HELD_OFF, name=self._name):
                return float(row.seconds or 0.0), row.reason or "", row.refused_ago
        return 0.0, "", None

    def _write_hold_off(self, seconds: float, reason: str) -> None:
        with self._engine.begin() as connection:
            hold_off(connection, self._name, seconds, reason)

    def _write_refusal(self) -> None:
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

    def reserve_calls() -> tuple[float, float]:
        with engine.begin() as connection:
            row = run(connection, queries.RESERVE_CALL, name=name, n=chunk, step=step)[0]
            return float(row.wait), float(row.step)

    async def before_call() -> None:
        loop = asyncio.get_running_loop()
        async with locks.setdefault(loop, asyncio.Lock()):
            while not left:
                wait, apart = await asyncio.to_thread(reserve_calls)
                start = loop.time() + wait
                left.extend(start + n * apart for n in reversed(range(chunk)))
            at = left.pop()
        if (delay := at - loop.time()) > 0:
            await asyncio.sleep(delay)

    return before_call
