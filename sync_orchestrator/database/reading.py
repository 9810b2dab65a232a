"""The database for commands that only look: psycopg alone, because SQLAlchemy's import costs more than such a command.

Whatever is not the ordinary case (a server to be started, tables to be made, a pooler in between, several hosts) is
left to the engine of ``app.open_database``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from sync_orchestrator.core.db.session import prepare_session
from sync_orchestrator.core.db.session_settings import add_settings
from sync_orchestrator.database.migrate import is_newest

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_SCHEMES = ("postgresql://", "postgres://", "postgresql+psycopg://", "postgresql+psycopg2://")


def login_of(url: str) -> dict[str, Any] | None:
    """The parameters by which psycopg connects to an ordinary URL of one server; None for any other URL."""
    scheme, _, rest = url.partition("://")
    place, mark, query = rest.partition("?")
    if f"{scheme}://" not in _SCHEMES or rest.count("@") > 1 or query.count("host=") > 1:
        return None
    try:
        # A plus sign of the query is a blank to SQLAlchemy, and itself to libpq.
        found = conninfo_to_dict(f"postgresql://{place}{mark}{query.replace('+', '%20')}")
    except psycopg.Error:
        return None
    is_one_server = "," not in str(found.get("host", "")) and str(found.get("port", "0")).isdecimal()
    return found if is_one_server else None


def open_for_reading(login: Mapping[str, Any]) -> Engine | None:
    """A read-only database of the present shape, or None where ``app.open_database`` has to do it.

    What is returned does as much of an engine's work as functions need that read.
    """
    settings = dict(login)
    add_settings(settings)
    try:
        driver = psycopg.connect(**settings)
    except psycopg.Error:
        return None
    opened = _ReadingEngine(driver)
    try:
        prepare_session(driver)
        driver.read_only = True
        driver.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with opened.begin() as connection:
            backend = connection.exec_driver_sql("SELECT pg_backend_pid() AS pid").all()[0].pid
            if backend == driver.info.backend_pid and is_newest(connection):
                return opened  # type: ignore[return-value]  # functions that read use no more of an engine
    except psycopg.Error:
        pass
    driver.close()
    return None


class _ReadingEngine:
    """All its transactions are snapshots, as functions want them that read more than one table."""

    def __init__(self, driver: psycopg.Connection[Any]) -> None:
        self._connection: Connection = _ReadingConnection(driver)  # type: ignore[assignment]
        self._driver = driver
        self.dispose = weakref.finalize(self, driver.close)  # a command that ends does not close what it opened

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        with self._driver.transaction():
            yield self._connection


class _ReadingConnection:
    def __init__(self, driver: psycopg.Connection[Any]) -> None:
        self._driver = driver

    def exec_driver_sql(self, statement: str, parameters: Mapping[str, object] | None = None) -> _Result:
        return _Result(self._driver.cursor(row_factory=_rows_by_name).execute(statement.encode(), parameters or None))


class _Result:
    def __init__(self, cursor: psycopg.Cursor[_Row]) -> None:
        self._cursor = cursor
        self.returns_rows = cursor.description is not None

    def all(self) -> list[_Row]:
        return self._cursor.fetchall()


class _Row(tuple[Any, ...]):
    """The values in order, each an attribute too, as rows of SQLAlchemy have them."""

    _names: tuple[str, ...] = ()

    @property
    def _mapping(self) -> dict[str, object]:
        return dict(zip(self._names, self, strict=True))

    def __getattr__(self, name: str) -> Any:
        try:
            return self[self._names.index(name)]
        except ValueError:
            raise AttributeError(name) from None


def _rows_by_name(cursor: psycopg.Cursor[Any]) -> Callable[[Sequence[object]], _Row]:
    names = tuple(column.name for column in cursor.description or ())
    return type("_Row", (_Row,), {"_names": names, "__slots__": ()})
