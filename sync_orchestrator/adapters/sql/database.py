"""A source system's own database: connections that only read, off the event loop, and failures classed."""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from weakref import WeakKeyDictionary

from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.types.json import set_json_loads
from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from sync_orchestrator import exact_json
from sync_orchestrator.adapters.http.responses import sanitize_text
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.errors import CallFailed, ConfigError, Failure

T = TypeVar("T")

_CONNECT_SECONDS = 10
_STATEMENTS = 3
"""As many stand behind one call at most, each with the time of one."""
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "psycopg": ("connect_timeout", "prepare_threshold", "client_encoding"),
    "psycopg2": ("connect_timeout", "client_encoding"),
    "pymysql": ("connect_timeout", "read_timeout"),
    "mysqldb": ("connect_timeout", "read_timeout"),
    "pymssql": ("login_timeout", "timeout"),
}
_SESSION: dict[str, tuple[str, ...]] = {
    "postgresql": (
        "SET statement_timeout = {milliseconds}",
        "SET DateStyle = 'ISO, YMD'",
        "SET IntervalStyle = 'postgres'",
        "SET extra_float_digits = 1",  # every float as the shortest text that is exactly it
        "SET TimeZone = 'UTC'",
    ),
    "mysql": ("SET SESSION TRANSACTION READ ONLY",),
    "mariadb": ("SET SESSION TRANSACTION READ ONLY",),
    "sqlite": ("PRAGMA query_only = ON",),
}
"""What each session is set to, so that values have one form whatever the server, the database or the role prefers."""
_ODD_IN_PYTHON = (
    "timestamptz",
    "timestamp",
    "date",
    "time",
    "timetz",
    "interval",
    "numeric",
    "json",
    "jsonb",
    "inet",
    "cidr",
    "uuid",
    "tsrange",
    "tstzrange",
    "daterange",
    "tsmultirange",
    "tstzmultirange",
    "datemultirange",
)
"""Types of Postgres with values that Python's own type cannot hold, or that its driver cannot read."""
_TEXTS = ("text", "varchar", "bpchar", "name")
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
        self._url = _parse_url(name, settings.url)
        self._engine = _create_source_engine(name, self._url, settings)
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._patience = _CONNECT_SECONDS + _STATEMENTS * settings.timeout

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
    return _create_source_engine(name, _parse_url(name, settings.url), settings)


def list_form_settings(url: str) -> list[str]:
    """The statements that give a session of Postgres the forms of values that reads of parts have."""
    chosen = "timezone" in str(make_url(url).query.get("options", "")).lower()
    return [
        statement
        for statement in _SESSION["postgresql"]
        if "statement_timeout" not in statement and not (chosen and "TimeZone" in statement)
    ]


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


def _parse_url(name: str, text: str) -> URL:
    try:
        return make_url(text)
    except (ArgumentError, ValueError):  # whose messages show the password
        raise ConfigError(f"sources.{name}.url: this is no database URL: write driver://user@host/database") from None


def _create_source_engine(name: str, url: URL, settings: SqlSourceSettings) -> Engine:
    try:
        if url.get_dialect().is_async:
            raise ConfigError(f"sources.{name}.url: {url.drivername} is an asynchronous driver: name another, or none")
        engine = create_engine(
            url,
            poolclass=QueuePool,
            pool_size=settings.connections,
            max_overflow=0,
            pool_pre_ping=True,
            hide_parameters=True,
            execution_options={"postgresql_readonly": True},
            **_build_engine_arguments(url, settings),
        )
    except NoSuchModuleError:
        raise ConfigError(
            f"sources.{name}.url: nothing installed knows '{url.drivername}': install the package that "
            "brings it to SQLAlchemy"
        ) from None
    except ImportError as error:
        raise ConfigError(
            f"sources.{name}.url: {url.drivername} needs the driver '{error.name}', which is not "
            f"installed: install the package that brings it, such as pip install {error.name}"
        ) from None
    if engine.driver == "psycopg":
        event.listen(engine, "connect", lambda connection, _: _take_any_value(connection), insert=True)
    milliseconds = math.ceil(settings.timeout * 1000)
    chosen = "timezone" in str(url.query.get("options", "")).lower()  # a URL that names a zone means it
    statements = [
        statement.format(milliseconds=milliseconds)
        for statement in _SESSION.get(engine.dialect.name, ())
        if not (chosen and "TimeZone" in statement)
    ]
    event.listen(engine, "connect", lambda connection, _: _prepare_session(connection, statements))
    return engine


def _build_engine_arguments(url: URL, settings: SqlSourceSettings) -> dict[str, object]:
    if url.get_backend_name() == "sqlite":
        return {"creator": lambda: _open_sqlite(url, settings.timeout)}
    statement = max(1, math.ceil(settings.timeout))
    values = {
        "connect_timeout": _CONNECT_SECONDS,
        "login_timeout": _CONNECT_SECONDS,
        "read_timeout": statement,
        "timeout": statement,
        "client_encoding": "UTF8",
        "prepare_threshold": None,
    }  # a prepared SELECT * fails once the table was altered
    names = _ARGUMENTS.get(url.get_driver_name(), ())
    return {"connect_args": {name: values[name] for name in names if name not in url.query}}


def _open_sqlite(url: URL, timeout: float) -> sqlite3.Connection:
    """Opens a file that is there; by default SQLite makes an empty one where there is none."""
    place = url.database or ""
    if not place.startswith("file:"):
        place = f"file:{quote(str(Path(place).resolve()))}?mode=ro"
    connection = sqlite3.connect(place, uri=True, timeout=timeout, check_same_thread=False)
    connection.text_factory = lambda stored: stored.decode("utf-8", "surrogateescape")  # one bad text spoils its row
    return connection


def _take_any_value(connection: Any) -> None:
    """Makes a value that its type's loader cannot read the text that Postgres writes.

    Such values are ``infinity``, ``24:00:00``, a year before 1 or after 9999. Each then spoils its row alone, or
    nothing if nobody maps its column.
    """
    adapters = connection.adapters
    set_json_loads(_parse_json, connection)
    for name in _ODD_IN_PYTHON:
        known = adapters.types.get(name)
        inner = None if known is None else adapters.get_loader(known.oid, Format.TEXT)
        if known is not None and inner is not None:
            adapters.register_loader(known.oid, _create_tolerant_loader(inner))
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":  # which holds bytes of any encoding
        connection.execute("SET client_encoding = 'SQL_ASCII'")  # else a byte that is no UTF-8 fails the statement
        connection.commit()
        for name in _TEXTS:
            adapters.register_loader(name, _AnyText)


def _create_tolerant_loader(inner: type[Any]) -> type[Loader]:
    class Tolerant(Loader):
        def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
            super().__init__(oid, context)
            self._inner = inner(oid, context)

        def load(self, data: Buffer) -> object:
            try:
                return self._inner.load(data)
            except Exception:
                return bytes(data).decode("utf-8", "surrogateescape")

    return Tolerant


class _AnyText(Loader):
    """A text that is no UTF-8 keeps what it has; it spoils its row alone."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "surrogateescape")


def _parse_json(stored: str | bytes) -> Any:
    return exact_json.parse(stored.encode() if isinstance(stored, str) else bytes(stored))


def _prepare_session(connection: Any, statements: Sequence[str]) -> None:
    cursor = connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()
    connection.commit()


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
