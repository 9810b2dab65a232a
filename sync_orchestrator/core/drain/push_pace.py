"""How many pushes to one third party are under way at once, and how many records are claimed ahead of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sync_orchestrator.config import ThirdPartySettings
    from sync_orchestrator.core.context import Context

MAX_RECORDS_AHEAD = 1000

_AHEAD_SECONDS = 0.25
_MIN_RATE_SECONDS = 0.05


class PushPace:
    """The pace of one pusher: ``Config.records_at_once``, or less where the third party does not answer that many."""

    def __init__(self, context: Context, name: str, system: ThirdPartySettings) -> None:
        self._limit = context.call_limits.get(name)
        self._batch = context.config.largest_batch(name)
        self._max_at_once = context.config.records_at_once(name)
        if self._limit is not None:  # it sees to it that these are not too many calls
            self._max_at_once = max(self._max_at_once, min(MAX_RECORDS_AHEAD, system.concurrency * self._batch))
        self._calls = 0
        self._measured = 0, time.monotonic()

    @asynccontextmanager
    async def register_pusher(self) -> AsyncIterator[None]:
        """Counts as one of the pushers that share the limit of the third party, until the block is left."""
        if self._limit is None:
            yield
            return
        await self._limit.refresh_limit()
        self._limit.pushers += 1
        try:
            yield
        finally:
            self._limit.pushers -= 1

    @property
    def at_once(self) -> int:
        """How many pushes to have under way."""
        if self._limit is None:
            return self._max_at_once
        return self._limit.limit_records(self._batch, self._max_at_once)

    @property
    def max_unsettled(self) -> int:
        """How many pushes may have ended before they are settled."""
        return max(MAX_RECORDS_AHEAD, 2 * self.at_once)

    def note_calls(self, count: int) -> None:
        """Notes that so many pushes called the third party."""
        self._calls += count

    def measure_ahead(self) -> int:
        """Returns how many records to have claimed, by the rate since the last measurement.

        A quarter of a second's worth of records, so that live changes have their turn soon.
        """
        calls, began = self._measured
        now = time.monotonic()
        rate = (self._calls - calls) / max(_MIN_RATE_SECONDS, now - began)
        self._measured = self._calls, now
        return max(2 * self.at_once, min(int(rate * _AHEAD_SECONDS), MAX_RECORDS_AHEAD))
