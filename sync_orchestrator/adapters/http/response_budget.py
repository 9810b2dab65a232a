"""One budget of memory for all responses that are read at the same time in an event loop.

Each response has a limit of its own (``max_response_bytes``), but a drain has dozens of requests under way. A response
that would exceed the budget waits until others are read. One response at a time may exceed it, so that waiting ends.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from weakref import WeakKeyDictionary

BUDGET_BYTES = 67_108_864

_FREE_BYTES = 65_536
"""Of each response, which are not counted: nearly all responses are smaller."""


class ResponseBudget:
    """The bytes of responses under way in one event loop."""

    def __init__(self, max_bytes: int = BUDGET_BYTES) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.exceeding: Share | None = None
        self.freed = asyncio.Event()

    def open_share(self) -> Share:
        """What one response takes of it: a context manager."""
        return Share(self)


class Share:
    """One response's part of a budget, until the ``with`` block is left."""

    def __init__(self, budget: ResponseBudget) -> None:
        self._budget = budget
        self._size_bytes = 0

    async def grow_to(self, size_bytes: int) -> None:
        """Waits until this many bytes fit in, all in all."""
        more = size_bytes - _FREE_BYTES - self._size_bytes
        if more <= 0:
            return
        budget = self._budget
        while budget.used_bytes + more > budget.max_bytes and budget.exceeding is not self:
            if budget.exceeding is None:
                budget.exceeding = self
                break
            budget.freed.clear()
            await budget.freed.wait()
        budget.used_bytes += more
        self._size_bytes += more

    def __enter__(self) -> Share:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._size_bytes:
            self._budget.used_bytes -= self._size_bytes
            if self._budget.exceeding is self:
                self._budget.exceeding = None
            self._budget.freed.set()


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, ResponseBudget] = WeakKeyDictionary()


def budget_of_loop() -> ResponseBudget:
    """The budget of the running event loop."""
    loop = asyncio.get_running_loop()
    budget = _of_loops.get(loop)
    if budget is None:
        budget = _of_loops[loop] = ResponseBudget()
    return budget
