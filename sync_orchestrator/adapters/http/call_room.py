"""When a system may be called: not while it asks to be left alone, within its rate, and up to its limit of calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sync_orchestrator.core.shutdown import ending
from sync_orchestrator.core.systems.call_limit import CallEnd, CallLimit
from sync_orchestrator.core.systems.rate_limit import HoldOff
from sync_orchestrator.errors import CallFailed, Failure


class Room:
    """When a system may be called: not while it asked to be left alone, within its rate, and so many at once."""

    def __init__(
        self, before_call: Callable[[], Awaitable[None]] | None, hold_off: HoldOff, limit: CallLimit | None = None
    ) -> None:
        self._before_call = before_call
        self._hold_off = hold_off
        self.limit = limit

    @asynccontextmanager
    async def begin_call(self, latest: float, *, write: bool) -> AsyncIterator[CallEnd]:
        """One call, begun when the system may be called. Raises CallFailed where that is later than ``latest``."""
        if self.limit is None:
            await self.wait_for_turn(latest)
            yield CallEnd()
            return
        async with self.limit.reserve_call(latest):
            await self.wait_for_turn(latest)
            async with self.limit.observe_call(write=write) as end:
                yield end

    async def wait_for_turn(self, latest: float) -> None:
        """Waits until the system may be called. Raises CallFailed where that is later than ``latest``."""
        with ending.refuse_when_requested():
            await self._wait_until_free(latest)

    async def _wait_until_free(self, latest: float) -> None:
        while True:
            while (left := await self._hold_off.seconds_left()) > 0:
                if time.monotonic() + left > latest:
                    why = f": {self._hold_off.reason}" if self._hold_off.reason else ""
                    raise CallFailed(
                        Failure.THROTTLED, f"asked to stay away for {left:.0f} s more{why}", retry_after=left
                    )
                await asyncio.sleep(left)
            if self._before_call is None:
                return
            await self._before_call()
            if await self._hold_off.seconds_left() <= 0:
                return
