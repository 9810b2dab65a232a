"""Requests that wait at the same time share a commit: one statement and one flush to the disk for all of them.

The database is spoken to from the event loop itself: a thread would wait for the interpreter at every answer, while
requests keep it busy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection, DataError, OperationalError
from psycopg import Error as PsycopgError
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine
from tenacity import AsyncRetrying

from sync_orchestrator.core import sessions
from sync_orchestrator.core.ledger import ChangeEvent, Recorded, record_on
from sync_orchestrator.core.sql import AGAIN

_MOST_EVENTS = 2000
_AT_ONCE = 2
_ENOUGH = 24
"""A second commit beside one under way is worth its cost from here on; fewer events wait and share the next."""


class _NotConnected(OperationalError):
    """There is no connection, so another try at once brings none either."""


@dataclass(slots=True)
class _Waiting:
    events: Sequence[ChangeEvent]
    done: asyncio.Future[Recorded]


class GroupCommit:
    """Records events of many requests together; each hears of its own. A commit may take ``most_seconds``."""

    def __init__(self, engine: Engine, most_seconds: float = 15.0) -> None:
        self._engine = engine
        self._most_seconds = most_seconds
        self._idle: list[AsyncConnection[Any]] = []
        self._waiting: deque[_Waiting] = deque()
        self._size = 0  # how many events are waiting
        self._running: set[asyncio.Task[None] | None] = set()

    async def record(self, events: Sequence[ChangeEvent]) -> Recorded:
        """Returns once the events are durable. Raises what the database raises, for these events alone, or
        TimeoutError."""
        own = _Waiting(events, asyncio.get_running_loop().create_future())
        self._waiting.append(own)
        self._size += len(events)
        if not self._running or (self._size >= _ENOUGH and len(self._running) < _AT_ONCE):
            self._running.add(asyncio.create_task(self._work()))
        return await own.done

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._commit(self._some())
        finally:  # at once: what comes from here on finds nobody at work
            self._running.discard(asyncio.current_task())

    def _some(self) -> list[_Waiting]:
        chosen = [self._waiting.popleft()]
        size = len(chosen[0].events)
        while self._waiting and size + len(self._waiting[0].events) <= _MOST_EVENTS:
            chosen.append(self._waiting.popleft())
            size += len(chosen[-1].events)
        self._size -= size
        return chosen

    async def _commit(self, chosen: Sequence[_Waiting]) -> None:
        try:
            async with asyncio.timeout(self._most_seconds):
                recorded: list[Recorded] = await _again(self._record, [waiting.events for waiting in chosen])
        except TimeoutError as error:
            _fail([*chosen, *self._waiting], error)
            self._waiting.clear()
            self._size = 0
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

    async def _record(self, batches: Sequence[Sequence[ChangeEvent]]) -> list[Recorded]:
        """On a connection of its own, which is kept only if it is still good.

        A session that cannot be used any more is replaced, and what it was to record is sent once more: the ids of the
        events tell what was recorded before.
        """
        try:
            return await self._record_in_session(batches)
        except PsycopgError as error:
            if not sessions.lost_session(error) or isinstance(error, _NotConnected):
                raise
        await self.aclose()  # those that are idle were opened before, on the same server
        return await self._record_in_session(batches)

    async def _record_in_session(self, batches: Sequence[Sequence[ChangeEvent]]) -> list[Recorded]:
        connection = self._idle.pop() if self._idle else await self._connected()
        good = False
        try:
            recorded = await record_on(connection, batches)
            good = True
            return recorded
        except PsycopgError as error:
            good = not sessions.lost_session(error)
            raise
        finally:
            is_idle = connection.info.transaction_status is TransactionStatus.IDLE if not connection.closed else False
            if good and is_idle and not sessions.reports_read_only(connection):
                self._idle.append(connection)
            else:
                await connection.close()

    async def _connected(self) -> AsyncConnection[Any]:
        words, options = self._engine.dialect.create_connect_args(self._engine.url)
        try:
            connection = await AsyncConnection.connect(*words, **options, autocommit=True)
        except OperationalError as error:
            raise _NotConnected(str(error)) from error
        try:
            await sessions.settle_async(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def aclose(self) -> None:
        """Ends the connections; a later event opens new ones."""
        while self._idle:
            await self._idle.pop().close()


_again = AsyncRetrying(**AGAIN)


def _fail(chosen: Iterable[_Waiting], error: Exception) -> None:
    for waiting in chosen:
        with contextlib.suppress(asyncio.InvalidStateError):
            waiting.done.set_exception(error)
