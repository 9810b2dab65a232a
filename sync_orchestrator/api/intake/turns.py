"""Turns at the event loop: large requests are worked on in short slices, one at a time, each sender after the other.

So however much one sender sends, requests of others wait for one slice. Threads would not do: they share one
interpreter, and each of them keeps the event loop waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from types import TracebackType

_SLICE_SECONDS = 0.0005
_PAUSE_SECONDS = 0.003
"""Between two slices while small requests come: a process that is always busy is given the processor less soon.
A shorter pause lets ``bench/flood.py`` measure more than twice the latency of a service without a flood."""
_LATELY_SECONDS = 0.1


class Turns:
    """One request has the turn, the next is of another sender where one waits."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._is_taken = False
        self._others_came = -_LATELY_SECONDS

    def give_way(self) -> None:
        """Says that a request came that does not take turns, since it is small."""
        self._others_came = time.perf_counter()

    def others_come(self) -> bool:
        """Whether such requests came lately."""
        return time.perf_counter() - self._others_came < _LATELY_SECONDS

    def make_turn(self, sender: str) -> Turn:
        """A context manager for the work on one request."""
        return Turn(self, sender)

    @property
    def is_waited_for(self) -> bool:
        """Whether another request waits for its turn."""
        return bool(self._waiting)

    async def wait_for_turn(self, sender: str) -> None:
        """Returns when it is the sender's turn."""
        if not self._is_taken:
            self._is_taken = True
            return
        own: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(sender, deque()).append(own)
        try:
            await own
        except asyncio.CancelledError:
            if own.done() and not own.cancelled():  # it was given the turn just now
                self.pass_turn()
            raise

    def pass_turn(self) -> None:
        """Gives the turn to the next sender."""
        while self._waiting:
            sender, queue = self._waiting.popitem(last=False)
            next_one = queue.popleft()
            if queue:
                self._waiting[sender] = queue  # behind all other senders
            if not next_one.done():
                next_one.set_result(None)
                return
        self._is_taken = False


class Turn:
    """The turn of one request, which it has and passes on by turns until its work is done."""

    def __init__(self, turns: Turns, sender: str) -> None:
        self._turns = turns
        self._sender = sender
        self._began = 0.0
        self._has_it = False

    async def __aenter__(self) -> Turn:
        await self._begin_slice()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end_slice()

    async def go_on(self) -> None:
        """To be called after each small piece of work: where the slice is over, others go first."""
        if time.perf_counter() - self._began < _SLICE_SECONDS:
            return
        await asyncio.sleep(_PAUSE_SECONDS if self._turns.others_come() else 0)
        if self._turns.is_waited_for:
            self._end_slice()
            await self._begin_slice()
        self._began = time.perf_counter()

    async def _begin_slice(self) -> None:
        await self._turns.wait_for_turn(self._sender)
        self._has_it = True
        self._began = time.perf_counter()

    def _end_slice(self) -> None:
        if self._has_it:
            self._has_it = False
            self._turns.pass_turn()
