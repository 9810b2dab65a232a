"""How many calls a system gets at once, and how large its batches are: a slow one is not driven into the ground.

Additive increase, multiplicative decrease. A call without an answer (a timeout, a reset, a gateway's 502 to 504) lowers
the limit; answers raise it again, for as long as their latency is well below the timeout. The number of calls is
lowered first, then the size of batches, and where nothing is answered calls pause. A limit is never raised
so far that the latency to be expected comes near the timeout.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psycopg

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.shutdown import ending
from sync_orchestrator.core.systems import queries
from sync_orchestrator.errors import CallFailed, Failure

if TYPE_CHECKING:
    from sqlalchemy import Engine, Row

FIRST_CALLS = 4
"""So many calls at once a system gets that nobody has called yet; twice as many after each window without trouble."""

FORGOTTEN_AFTER_SECONDS = 3600.0
"""A limit that was not lowered for so long is over."""

GATEWAY_STATUSES = (502, 503, 504)
"""By these a gateway says that the system behind it gives no answer."""

MIN_BATCH_SHARE = 0.01

_LOOK_AGAIN_SECONDS = 1.0
_WINDOW_SECONDS = 0.25
_FAIR_SHARE, _NEAR_SHARE, _SLOW_SHARE = 0.35, 0.75, 0.85  # parts of the timeout
_MAX_PAUSE_SECONDS = 60.0
_WRITES_COUNT_SECONDS = 30.0

_log = logging.getLogger("sync_orchestrator.calls")


@dataclass(frozen=True, slots=True)
class Limit:
    """``calls`` at once in one process, and the ``batch`` share of the configured size that one bulk call has.

    ``is_known``: something was learned about the system. ``was_lowered``: a call was lost, or nearly, within the hour.
    """

    calls: float
    batch: float = 1.0
    is_known: bool = False
    was_lowered: bool = False
    reason: str = ""


def lower_limit(limit: Limit, reason: str, *, losses: int = 0) -> Limit:
    """The limit after a call without an answer. Pure.

    ``losses``: how often it was lowered before without any answer since. Batches become smaller where a single call,
    made when those before it were over, is not answered.
    """
    calls, batch = limit.calls, limit.batch
    if calls <= 1 and losses > 1:
        batch = max(MIN_BATCH_SHARE, batch / 2)
    calls = max(1.0, calls / (4 if losses else 2))
    return Limit(calls, batch, is_known=True, was_lowered=True, reason=reason)


def ease_limit(limit: Limit, reason: str) -> Limit:
    """The limit after a call that was answered late. Pure."""
    calls, batch = limit.calls, limit.batch
    if calls > 1:
        calls = max(1.0, calls * _SLOW_SHARE)
    else:
        batch = max(MIN_BATCH_SHARE, batch * _SLOW_SHARE)
    return Limit(calls, batch, is_known=True, was_lowered=True, reason=reason)


def raise_limit(limit: Limit, most: int, slowest: float, timeout: float) -> Limit:
    """The limit after a window whose slowest call took so many seconds; the same one where more would be too much.

    Batches come first, since a larger one costs a server less than two. Pure.
    """
    calls, batch = limit.calls, limit.batch
    steps = [calls, most / 16] if not limit.was_lowered else [most / 16]
    wider = next(
        (
            calls + step
            for step in (*(max(1.0, step) for step in steps), 1.0)
            if slowest * (calls + step) / calls < _NEAR_SHARE * timeout
        ),
        calls,
    )
    if batch < 1 and slowest < _FAIR_SHARE * timeout:
        batch = min(1.0, batch * (2 if slowest < _FAIR_SHARE / 2 * timeout else 1.25))
    elif calls < most and wider > calls:
        calls = min(float(most), wider)
    elif batch < 1 and slowest < _NEAR_SHARE * timeout:
        batch = min(1.0, batch * 1.25)
    return replace(limit, calls=calls, batch=batch, is_known=True)


@dataclass(slots=True)
class _Slots:
    """The calls under way in one event loop, and those that wait for one to end."""

    under_way: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


@dataclass(slots=True)
class _Window:
    """What came since the limit was changed or looked at last."""

    began: float
    slowest: float = 0.0
    was_full: bool = False


@dataclass(slots=True)
class CallEnd:
    """How a call ended. ``unanswered``: why what came is no answer of the system, such as a gateway's 504."""

    unanswered: str | None = None


class CallLimit:
    """The limit of one system, known to this process.

    Args:
        most: The configured number of calls at once.
        timeout: Of one call, in seconds.
    """

    def __init__(self, most: int, timeout: float) -> None:
        self._most = most
        self._timeout = timeout
        self._limit = Limit(float(min(most, FIRST_CALLS)))
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, _Slots] = WeakKeyDictionary()
        self._window = _Window(time.monotonic())
        self._lowered_at = -math.inf
        self._losses = 0
        self._paused_until = -math.inf
        self._write_at = -math.inf
        self.pushers = 0
        """How many pushers of this process share it."""

    @property
    def calls(self) -> int:
        """How many calls may be under way at once in this process."""
        return max(1, min(self._most, int(self._limit.calls)))

    @property
    def is_full(self) -> bool:
        """Whether nothing is limited beyond the configuration."""
        return self.calls >= self._most and self._limit.batch >= 1

    def limit_batch(self, size: int) -> int:
        """How many records one call may have of the configured size."""
        return max(1, min(size, round(size * self._limit.batch)))

    def limit_records(self, size: int, most: int) -> int:
        """How many records one pusher may have under way, of ``most``; ``size``: of the largest batch, 1 for none."""
        if self.is_full:
            return most
        return max(1, min(most, math.ceil(self.calls * self.limit_batch(size) / max(1, self.pushers))))

    def has_room(self) -> bool:
        """Whether a call could begin now."""
        return self._slots_of_loop().under_way < self.calls and self._paused_until <= time.monotonic()

    @asynccontextmanager
    async def reserve_call(self, latest: float) -> AsyncIterator[None]:
        """Room for one call until the block is left. Waits for it until the monotonic time ``latest``.

        Raises CallFailed where there is none by then.
        """
        slots = self._slots_of_loop()
        with ending.refuse_when_requested():
            await self.refresh_limit()
            while (left := self._paused_until - time.monotonic()) > 0:
                if time.monotonic() + left > latest:
                    raise CallFailed(
                        Failure.THROTTLED, f"calls to it pause for {left:.0f} s more: {self._limit.reason}"
                    )
                await asyncio.sleep(left)
            await self._enter_slot(slots, latest)
        try:
            yield
        finally:
            slots.under_way -= 1
            self._wake_waiting(slots)

    @asynccontextmanager
    async def observe_call(self, *, write: bool) -> AsyncIterator[CallEnd]:
        """One call, from whose end the limit learns."""
        began, end = time.monotonic(), CallEnd()
        try:
            yield end
        except CallFailed as failure:
            if has_no_response(failure):
                await self.note_loss(began, failure.detail)
            raise
        if end.unanswered is not None:
            await self.note_loss(began, end.unanswered)
        else:
            await self.note_response(began, write=write)

    async def note_loss(self, began: float, reason: str) -> None:
        """A call that began at this monotonic time had no answer; those under way with it are one loss."""
        if began < self._lowered_at:
            return
        now = time.monotonic()
        before, self._losses = self._losses, self._losses + 1
        self._lowered_at, self._window = now, _Window(now)
        if before:  # what was sent before is still worked on there, though nobody waits for it
            self._paused_until = now + min(_MAX_PAUSE_SECONDS, self._timeout * 2 ** (before - 1))
        await self._set_limit(lower_limit(self._limit, reason, losses=before), now - began, lowers=True)

    async def note_response(self, began: float, *, write: bool) -> None:
        """A call that began at this monotonic time was answered."""
        now = time.monotonic()
        self._losses = 0
        if write:
            self._write_at = now
        elif now - self._write_at < _WRITES_COUNT_SECONDS:
            return  # a read that is quick says little about writes that are slow
        window, took = self._window, now - began
        if began < self._lowered_at:
            return  # it ran under a higher limit
        window.slowest = max(window.slowest, took)
        if now - window.began < max(_WINDOW_SECONDS, window.slowest):
            return
        self._window = _Window(now)
        if window.slowest > _SLOW_SHARE * self._timeout:
            self._lowered_at = now
            await self._set_limit(
                ease_limit(
                    self._limit,
                    f"a call took {window.slowest:.1f} s of the {self._timeout:g} s that 'timeout' gives it",
                ),
                now - window.began,
                lowers=True,
            )
        elif (window.was_full and not self.is_full) or not self._limit.is_known:
            higher = raise_limit(self._limit, self._most, window.slowest, self._timeout)
            if higher != self._limit:
                await self._set_limit(higher, now - window.began, lowers=False)

    async def refresh_limit(self) -> None:
        """Learns what other processes have learned."""

    async def _set_limit(self, limit: Limit, within: float, *, lowers: bool) -> None:
        """Has a limit from here on; ``within``: for how many seconds it was observed."""
        self._apply_limit(limit)

    def _apply_limit(self, limit: Limit) -> None:
        self._limit = limit
        for slots in list(self._slots.values()):
            self._wake_waiting(slots)

    def _slots_of_loop(self) -> _Slots:
        return self._slots.setdefault(asyncio.get_running_loop(), _Slots())

    async def _enter_slot(self, slots: _Slots, latest: float) -> None:
        if slots.under_way < self.calls and not slots.waiting:
            slots.under_way += 1
        else:
            await self._wait_for_slot(slots, latest)
        if slots.under_way >= self.calls:
            self._window.was_full = True

    async def _wait_for_slot(self, slots: _Slots, latest: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        slots.waiting.append(turn)
        try:
            async with asyncio.timeout(max(0.0, latest - time.monotonic())):
                await turn
        except TimeoutError:
            if turn.done() and not turn.cancelled():
                return  # its turn came at the same time
            raise CallFailed(
                Failure.THROTTLED,
                f"no room for another call: {self.calls} at once are made now"
                + (f", since {self._limit.reason}" if self._limit.reason else ""),
            ) from None
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                slots.under_way -= 1
                self._wake_waiting(slots)
            raise
        finally:
            if turn in slots.waiting:
                slots.waiting.remove(turn)

    def _wake_waiting(self, slots: _Slots) -> None:
        while slots.waiting and slots.under_way < self.calls:
            turn = slots.waiting.popleft()
            if not turn.done():
                slots.under_way += 1
                turn.set_result(None)


class SharedCallLimit(CallLimit):
    """The same for all processes on all machines, through the database: each learns of a change within a second."""

    def __init__(self, engine: Engine, name: str, most: int, timeout: float) -> None:
        super().__init__(most, timeout)
        self._engine = engine
        self._name = name
        self._look_at = 0.0

    async def refresh_limit(self) -> None:
        """Rereads the limit where the last look is too old. A limit lowered here since then stays."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_AGAIN_SECONDS
            row = await asyncio.to_thread(self._read_row)
            if row is not None and now >= self._lowered_at:
                self._apply_limit(self._limit_of_row(row))

    async def _set_limit(self, limit: Limit, within: float, *, lowers: bool) -> None:
        self._apply_limit(limit)
        from sqlalchemy.exc import SQLAlchemyError

        self._look_at = time.monotonic() + _LOOK_AGAIN_SECONDS
        try:
            row = await asyncio.to_thread(self._write_row, limit, within, lowers)
        except (SQLAlchemyError, psycopg.Error) as error:  # what came of the call must not be lost with it
            _log.warning("the limit of calls to %s could not be shared: %s", self._name, type(error).__name__)
            return
        if row is not None:
            self._apply_limit(self._limit_of_row(row))
        if lowers:
            _log.info(
                "%s: %d calls at once, %.0f %% of the batch size: %s",
                self._name,
                self.calls,
                100 * self._limit.batch,
                limit.reason,
            )

    def _limit_of_row(self, row: Row[Any]) -> Limit:
        if row.calls_at_once is None:
            return Limit(float(min(self._most, FIRST_CALLS)))
        if row.lost_ago is not None and row.lost_ago > FORGOTTEN_AFTER_SECONDS:
            return Limit(float(self._most), is_known=True)
        return Limit(
            min(float(self._most), row.calls_at_once),
            row.batch_share,
            True,
            row.lost_ago is not None,
            row.calls_reason or "",
        )

    def _read_row(self) -> Row[Any] | None:
        with self._engine.begin() as connection:
            rows = run(connection, queries.SELECT_CALL_LIMIT, name=self._name)
        return rows[0] if rows else None

    def _write_row(self, limit: Limit, within: float, lowers: bool) -> Row[Any] | None:
        """Writes what was observed, unless another process has written since the observation began."""
        with self._engine.begin() as connection:
            rows = run(
                connection,
                queries.SET_CALL_LIMIT,
                name=self._name,
                calls=limit.calls,
                most=self._most,
                batch=limit.batch,
                reason=limit.reason,
                within=within,
                lowers=lowers,
            )
            rows = rows or run(connection, queries.SELECT_CALL_LIMIT, name=self._name)
        return rows[0] if rows else None


def has_no_response(failure: CallFailed) -> bool:
    """Whether a call had no answer of the system: a timeout, a reset, or a gateway that says so."""
    if failure.kind is not Failure.TRANSIENT:
        return False
    if failure.status is None:
        return failure.unknown and failure.about_system
    return failure.status in GATEWAY_STATUSES
