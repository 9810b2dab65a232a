"""Requests that wait at the same time share a commit: one statement and one flush to the disk for all of them.

Each source system has its share: their requests are taken in turns, one source has no more than two commits under way,
and a third is kept for those that have none. So a source waits for one commit of another's, however much that sends.

The database is spoken to from the event loop itself: a thread would wait for the interpreter at every answer, while
requests keep it busy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection, DataError, OperationalError
from psycopg import Error as PsycopgError
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine
from tenacity import AsyncRetrying

from sync_orchestrator.core.db import connections, session_settings
from sync_orchestrator.core.db.session import AGAIN
from sync_orchestrator.core.ledger.recording import ChangeEvent, PreparedEvent, Recorded, prepare_event, record_on

_MAX_EVENTS = 2000
"""The most events of a commit. A request of more has one to itself, and there is one of those at a time: each keeps a
processor of the database's server busy for long."""
_MAX_SHARED_EVENTS = 500
"""The most events of a commit for which several sources wait: it is over soon."""
_MAX_BYTES = 4_194_304
_MAX_COMMITS = 2
_MAX_COMMITS_WITH_OTHERS = 3
_LONG = 200
"""Another source does not wait for a commit of more events than this."""
_ENOUGH = 24
"""A second commit beside one under way is worth its cost from here on; fewer events wait and share the next."""


Sources = tuple[str, ...]
"""The source systems of one request's events, in order: nearly always one."""


class _NotConnected(OperationalError):
    """There is no connection, so another try at once brings none either."""


@dataclass(slots=True)
class _WaitingEvents:
    events: Sequence[PreparedEvent]
    done: asyncio.Future[Recorded]
    sources: Sources
    size: int


class GroupCommit:
    """Records events of many requests together; each hears of its own. A commit may take ``most_seconds``."""

    def __init__(self, engine: Engine, most_seconds: float = 15.0) -> None:
        self._engine = engine
        self._most_seconds = most_seconds
        self._idle: list[AsyncConnection[Any]] = []
        self._waiting: OrderedDict[Sources, deque[_WaitingEvents]] = OrderedDict()  # whose turn it is comes first
        self._size = 0  # how many events are waiting
        self._running: dict[asyncio.Task[None], list[_WaitingEvents]] = {}

    async def record_events(self, events: Sequence[ChangeEvent]) -> Recorded:
        """Returns once the events are durable.

        Raises what the database raises, for these events alone, or TimeoutError.
        """
        return await self.record_prepared([prepare_event(event) for event in events])

    async def record_prepared(self, events: Sequence[PreparedEvent]) -> Recorded:
        """The same for events that are written already."""
        sources = tuple(sorted({event.source for event in events}))
        own = _WaitingEvents(
            events, asyncio.get_running_loop().create_future(), sources, sum(len(event.row) for event in events)
        )
        self._waiting.setdefault(sources, deque()).append(own)
        self._size += len(events)
        if self._is_worth_another(sources):
            task = asyncio.create_task(self._commit_repeatedly())
            self._running[task] = []
        return await own.done

    def _is_worth_another(self, sources: Sources) -> bool:
        running = len(self._running)
        if not running:
            return True
        if running < _MAX_COMMITS and self._size >= _ENOUGH:
            return True
        under_way = [sum(len(waiting.events) for waiting in chosen) for chosen in self._running.values()]
        return running < _MAX_COMMITS_WITH_OTHERS and self._under_way(sources) == 0 and min(under_way) > _LONG

    def _under_way(self, sources: Sources) -> int:
        return sum(any(waiting.sources == sources for waiting in chosen) for chosen in self._running.values())

    async def _commit_repeatedly(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while chosen := self._choose_waiting():
                self._running[task] = chosen
                await self._commit_chosen(chosen)
                self._running[task] = []
        finally:  # at once: what comes from here on finds nobody at work
            self._running.pop(task, None)

    def _choose_waiting(self) -> list[_WaitingEvents]:
        """What the next commit records: of each source in turn, as long as it has a commit to spare."""
        chosen: list[_WaitingEvents] = []
        events = size = 0
        is_busy = any(len(waiting.events) > _MAX_EVENTS for chosen in self._running.values() for waiting in chosen)
        free = [
            sources
            for sources, queue in self._waiting.items()
            if self._under_way(sources) < _MAX_COMMITS and not (is_busy and len(queue[0].events) > _MAX_EVENTS)
        ]
        limit = _MAX_EVENTS if len(self._waiting) == 1 else _MAX_SHARED_EVENTS
        while free:
            for sources in list(free):
                queue = self._waiting[sources]
                first = queue[0]
                if chosen and (events + len(first.events) > limit or size + first.size > _MAX_BYTES):
                    free.remove(sources)
                    continue
                chosen.append(queue.popleft())
                events += len(first.events)
                size += first.size
                self._waiting.move_to_end(sources)
                if not queue:
                    del self._waiting[sources]
                    free.remove(sources)
        self._size -= events
        return chosen

    async def _commit_chosen(self, chosen: Sequence[_WaitingEvents]) -> None:
        try:
            async with asyncio.timeout(self._most_seconds):
                recorded: list[Recorded] = await _again(self._record_batches, [waiting.events for waiting in chosen])
        except TimeoutError as error:
            _fail_waiting([*chosen, *(waiting for queue in self._waiting.values() for waiting in queue)], error)
            self._waiting.clear()
            self._size = 0
        except Exception as error:
            if len(chosen) == 1 or not isinstance(error, DataError):
                _fail_waiting(chosen, error)
                return
            for waiting in chosen:  # one of them is to blame; the others must not suffer for it
                await self._commit_chosen([waiting])
        else:
            for waiting, own in zip(chosen, recorded, strict=True):
                with contextlib.suppress(asyncio.InvalidStateError):  # its request has gone away
                    waiting.done.set_result(own)

    async def _record_batches(self, batches: Sequence[Sequence[PreparedEvent]]) -> list[Recorded]:
        """On a connection of its own, which is kept only if it is still good.

        A session that cannot be used any more is replaced, and what it was to record is sent once more: the ids of the
        events tell what was recorded before.
        """
        try:
            return await self._record_in_session(batches)
        except PsycopgError as error:
            if not connections.lost_session(error) or isinstance(error, _NotConnected):
                raise
        await self.aclose()  # those that are idle were opened before, on the same server
        return await self._record_in_session(batches)

    async def _record_in_session(self, batches: Sequence[Sequence[PreparedEvent]]) -> list[Recorded]:
        connection = self._idle.pop() if self._idle else await self._open_connection()
        good = False
        try:
            recorded = await record_on(connection, batches)
            good = True
            return recorded
        except PsycopgError as error:
            good = not connections.lost_session(error)
            raise
        finally:
            is_idle = connection.info.transaction_status is TransactionStatus.IDLE if not connection.closed else False
            if good and is_idle and not connections.reports_read_only(connection):
                self._idle.append(connection)
            else:
                await connection.close()

    async def _open_connection(self) -> AsyncConnection[Any]:
        words, options = self._engine.dialect.create_connect_args(self._engine.url)
        try:
            connection = await AsyncConnection.connect(*words, **options, autocommit=True)
        except OperationalError as error:
            raise _NotConnected(str(error)) from error
        try:
            await session_settings.settle_async(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def aclose(self) -> None:
        """Ends the connections; a later event opens new ones."""
        while self._idle:
            await self._idle.pop().close()


_again = AsyncRetrying(**AGAIN)


def _fail_waiting(chosen: Iterable[_WaitingEvents], error: Exception) -> None:
    for waiting in chosen:
        with contextlib.suppress(asyncio.InvalidStateError):
            waiting.done.set_exception(error)
