"""A source system's own database: connections that only read, off the event loop, and failures classed."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from sync_orchestrator.adapters.http.responses import sanitize_text
from sync_orchestrator.adapters.sql.engines import CONNECT_SECONDS, create_database_engine, parse_database_url
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.errors import CallFailed, Failure

T = TypeVar("T")

_STATEMENTS = 3
"""As many stand behind one call at most, each with the time of one."""
_REFUSED = re.compile(
    r"authentication failed|no password supplied|access denied|login failed|invalid username/password|ORA-01017"
    r"|no pg_hba\.conf entry|role .* does not exist|permission denied",
    re.IGNORECASE,
)
_MAX_SCANNED = 2000
_LASTING = re.compile(r"no such (table|column|function)|syntax error|not a database", re.IGNORECASE)


class SourceDatabase:
    """One source system's database; ``name`` is the system's in the configuration.

    Raises ConfigError for a URL that is none, and for a driver that is not installed.
    """

    def __init__(self, name: str, settings: SqlSourceSettings) -> None:
        self._settings = settings
        place = f"sources.{name}"
        self._url = parse_database_url(place, settings.url)
        self._engine = create_database_engine(
            place, self._url, connections=settings.connections, timeout=settings.timeout
        )
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._patience = CONNECT_SECONDS + _STATEMENTS * settings.timeout

    async def run_on_connection(self, what: str, work: Callable[[Connection], T]) -> T:
        """Does work on a connection of its own, in a thread of its own.

        Raises CallFailed, which begins with ``what``.
        """
        loop = asyncio.get_running_loop()
        async with self._turns.setdefault(loop, asyncio.Semaphore(self._settings.connections)):
            return await self._run_in_thread(loop, what, work)

    async def _run_in_thread(self, loop: asyncio.AbstractEventLoop, what: str, work: Callable[[Connection], T]) -> T:
        answer: asyncio.Future[T] = loop.create_future()
        sockets: list[socket.socket] = []

        def carried_out() -> None:
            try:
                result = self._connect_and_run(what, work, sockets)
            except BaseException as error:
                told = partial(_set_exception, answer, error)
            else:
                told = partial(_set_result, answer, result)
            with suppress(RuntimeError):  # its event loop has ended
                loop.call_soon_threadsafe(told)

        threading.Thread(target=carried_out, name="sql-source", daemon=True).start()  # a silent server holds no exit up
        try:
            return await asyncio.wait_for(answer, self._patience)
        except TimeoutError:
            self._engine.dispose(close=False)  # what still waits keeps its connection; others are made
            _shut_down_sockets(sockets)
            raise CallFailed(Failure.TRANSIENT, f"{what}: no answer within {self._patience:g} s") from None

    async def close(self) -> None:
        """Ends its connections; it may be used again."""
        await asyncio.to_thread(self._engine.dispose)

    def _connect_and_run(self, what: str, work: Callable[[Connection], T], sockets: list[socket.socket]) -> T:
        try:
            with self._engine.connect() as connection, _interrupt_after(connection, self._settings.timeout):
                with suppress(AttributeError, OSError, DBAPIError):
                    told = connection.connection.driver_connection.fileno()  # type: ignore[union-attr]
                    sockets.append(socket.socket(fileno=os.dup(told)))
                return work(connection)
        except DBAPIError as error:
            raise self._build_failure(what, error) from None
        except PoolTimeout:
            busy = f"{what}: all {self._settings.connections} connections are busy"
            raise CallFailed(Failure.TRANSIENT, busy) from None
        finally:
            for opened in sockets:
                opened.close()

    def sanitize_text(self, text: str) -> str:
        """Text for an error message: on one line, clipped, without the password."""
        return sanitize_text(text, [str(self._url.password)] if self._url.password else [])

    def _build_failure(self, what: str, error: DBAPIError) -> CallFailed:
        came = str(error.orig)
        return CallFailed(
            _classify_error(error, came), f"{what}: {self.sanitize_text(came.strip().partition(chr(10))[0])}"
        )


def open_source_engine(name: str, settings: SqlSourceSettings) -> Engine:
    """An engine on a source system's database, whose sessions give values the forms that reads of parts have.

    Raises:
        ConfigError: The URL is none, or its driver is not installed.
    """
    place = f"sources.{name}"
    url = parse_database_url(place, settings.url)
    return create_database_engine(place, url, connections=settings.connections, timeout=settings.timeout)


def _shut_down_sockets(sockets: list[socket.socket]) -> None:
    """Ends connections whose server says nothing, so that the threads that wait on them end, too."""
    for opened in sockets:
        with suppress(OSError):  # it is closed already
            opened.shutdown(socket.SHUT_RDWR)


def _set_result(answer: asyncio.Future[T], result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def _set_exception(answer: asyncio.Future[T], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)


def _classify_error(error: DBAPIError, came: str) -> Failure:
    came = came[:_MAX_SCANNED]
    if _REFUSED.search(came):
        return Failure.AUTH
    passing = isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
    return Failure.TRANSIENT if passing and not _LASTING.search(came) else Failure.PERMANENT


@contextmanager
def _interrupt_after(connection: Connection, seconds: float) -> Iterator[None]:
    """Stops a statement that takes too long, where the driver does it in the database's place."""
    interrupt = getattr(connection.connection.driver_connection, "interrupt", None)
    if interrupt is None:
        yield
        return
    timer = threading.Timer(seconds, interrupt)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
