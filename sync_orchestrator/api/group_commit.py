"""Requests that wait at the same time share a commit: one statement and one flush to the disk for all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.exc import DataError

from sync_orchestrator.core.ledger import ChangeEvent, Recorded, record_each

_MOST_EVENTS = 2000
_AT_ONCE = 2


@dataclass(slots=True)
class _Waiting:
    events: Sequence[ChangeEvent]
    done: asyncio.Future[Recorded]


class GroupCommit:
    """Records events of many requests together; each hears of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: deque[_Waiting] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def record(self, events: Sequence[ChangeEvent]) -> Recorded:
        """Returns once the events are durable. Raises what the database raises, for these events alone."""
        own = _Waiting(events, asyncio.get_running_loop().create_future())
        self._waiting.append(own)
        if len(self._running) < _AT_ONCE:
            task = asyncio.create_task(self._work())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return await own.done

    async def _work(self) -> None:
        while self._waiting:
            await self._commit(self._some())

    def _some(self) -> list[_Waiting]:
        chosen = [self._waiting.popleft()]
        size = len(chosen[0].events)
        while self._waiting and size + len(self._waiting[0].events) <= _MOST_EVENTS:
            chosen.append(self._waiting.popleft())
            size += len(chosen[-1].events)
        return chosen

    async def _commit(self, chosen: Sequence[_Waiting]) -> None:
        try:
            recorded = await asyncio.to_thread(record_each, self._engine, [waiting.events for waiting in chosen])
        except Exception as error:
            if len(chosen) == 1 or not isinstance(error, DataError):
                _fail(chosen, error)
                return
            for waiting in chosen:  # one of them is to blame; the others must not suffer for it
                await self._commit([waiting])
        else:
            for waiting, own in zip(chosen, recorded, strict=True):
                with contextlib.suppress(asyncio.InvalidStateError):  # its request has gone away
                    waiting.done.set_result(own)


def _fail(chosen: Sequence[_Waiting], error: Exception) -> None:
    for waiting in chosen:
        with contextlib.suppress(asyncio.InvalidStateError):
            waiting.done.set_exception(error)
