"""Connections to databases of others, whose values have one form whatever the server or the role prefers."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format
from psycopg.types.json import set_json_loads
from sqlalchemy import URL, Engine, QueuePool, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from sync_orchestrator import exact_json
from sync_orchestrator.errors import ConfigError

CONNECT_SECONDS = 10
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


def parse_database_url(place: str, text: str) -> URL:
    """Parses a URL of SQLAlchemy; ``place`` is the section of the configuration that has it as ``url``.

    Raises ConfigError for a text that is none.
    """
    try:
        return make_url(text)
    except (ArgumentError, ValueError):  # whose messages show the password
        raise ConfigError(f"{place}.url: this is no database URL: write driver://user@host/database") from None


def create_database_engine(
    place: str, url: URL, *, connections: int, timeout: float, is_read_only: bool = True
) -> Engine:
    """Creates an engine whose values have one form whatever the server prefers.

    Args:
        place: The section of the configuration that has the URL.
        url: The database.
        connections: The largest number of connections at once.
        timeout: The longest that a statement may take, in seconds.
        is_read_only: Whether its sessions refuse to write. Other sessions are set by nothing: set each transaction
            with ``transaction_settings``.

    Raises:
        ConfigError: Nothing installed knows the database, or its driver is not installed.
    """
    try:
        if url.get_dialect().is_async:
            raise ConfigError(f"{place}.url: {url.drivername} is an asynchronous driver: name another, or none")
        engine = create_engine(
            url,
            poolclass=QueuePool,
            pool_size=connections,
            max_overflow=0,
            pool_pre_ping=True,
            hide_parameters=True,
            **({"execution_options": {"postgresql_readonly": True}} if is_read_only else {}),
            **_build_engine_arguments(url, timeout, is_read_only=is_read_only),
        )
    except NoSuchModuleError:
        raise ConfigError(
            f"{place}.url: nothing installed knows '{url.drivername}': install the package that brings it to SQLAlchemy"
        ) from None
    except ImportError as error:
        raise ConfigError(
            f"{place}.url: {url.drivername} needs the driver '{error.name}', which is not "
            f"installed: install the package that brings it, such as pip install {error.name}"
        ) from None
    if engine.driver == "psycopg":
        event.listen(engine, "connect", lambda connection, _: _take_any_value(connection), insert=True)
    if is_read_only:
        milliseconds = math.ceil(timeout * 1000)
        chosen = "timezone" in str(url.query.get("options", "")).lower()  # a URL that names a zone means it
        statements = [
            statement.format(milliseconds=milliseconds)
            for statement in _SESSION.get(engine.dialect.name, ())
            if not (chosen and "TimeZone" in statement)
        ]
        event.listen(engine, "connect", lambda connection, _: _prepare_session(connection, statements))
    return engine


def list_form_settings(url: str) -> list[str]:
    """The statements that give a session of Postgres the forms of values that reads of parts have."""
    chosen = "timezone" in str(make_url(url).query.get("options", "")).lower()
    return [
        statement
        for statement in _SESSION["postgresql"]
        if "statement_timeout" not in statement and not (chosen and "TimeZone" in statement)
    ]


def transaction_settings(dialect: str, timeout: float) -> list[str]:
    """Returns the statements that give one transaction the forms of values, where a pooler shares the session."""
    if dialect != "postgresql":
        return []
    milliseconds = math.ceil(timeout * 1000)
    return [
        statement.format(milliseconds=milliseconds).replace("SET ", "SET LOCAL ", 1)
        for statement in _SESSION["postgresql"]
    ]


def _build_engine_arguments(url: URL, timeout: float, *, is_read_only: bool) -> dict[str, object]:
    if url.get_backend_name() == "sqlite":
        return {"creator": lambda: _open_sqlite(url, timeout, "ro" if is_read_only else "rw")}
    statement = max(1, math.ceil(timeout))
    values = {
        "connect_timeout": CONNECT_SECONDS,
        "login_timeout": CONNECT_SECONDS,
        "read_timeout": statement,
        "timeout": statement,
        "client_encoding": "UTF8",
        "prepare_threshold": None,
    }  # a prepared SELECT * fails once the table was altered
    names = _ARGUMENTS.get(url.get_driver_name(), ())
    return {"connect_args": {name: values[name] for name in names if name not in url.query}}


def _open_sqlite(url: URL, timeout: float, mode: str) -> sqlite3.Connection:
    """Opens a file that is there; by default SQLite makes an empty one where there is none."""
    place = url.database or ""
    if not place.startswith("file:"):
        place = f"file:{quote(str(Path(place).resolve()))}?mode={mode}"
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
