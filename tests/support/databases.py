"""The databases of the tests: one embedded server, and an empty, migrated database for each test that asks for one.

A database that a test leaves in its shape is emptied and given to the next, which is much cheaper than a new one. Its
sessions stay open: a new one costs more than most tests do, for it reads the catalogs anew.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.database.migrate import migrate

_numbers = itertools.count(1)
_SESSIONS_LIMIT = 6
T = TypeVar("T")

# What would be another if a test had changed the schema, its functions, triggers or version, or left settings behind.
_SHAPE = """
SELECT (SELECT md5(string_agg(c.oid || c.relname || c.relnatts || c.reltriggers::int, ',' ORDER BY c.oid))
        FROM (SELECT oid, relname, relnatts, relhastriggers AS reltriggers FROM pg_class
              WHERE relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('sync', 'public'))) c) AS tables,
       (SELECT count(*) FROM pg_proc) AS functions, (SELECT count(*) FROM pg_constraint) AS constraints,
       (SELECT count(*) FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase
        WHERE datname = current_database()) AS settings,
       (SELECT string_agg(version_num, ',') FROM sync.alembic_version) AS version
"""

_EMPTY = """
DO $$
DECLARE
    found boolean;
    name regclass;
BEGIN
    FOR name IN SELECT oid::regclass FROM pg_class
                WHERE relnamespace = 'sync'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version' LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %%s)', name) INTO found;
        IF found THEN
            EXECUTE format('DELETE FROM %%s', name);
        END IF;
    END LOOP;
    PERFORM setval(oid::regclass, 1, false) FROM pg_class
    WHERE relnamespace = 'sync'::regnamespace AND relkind = 'S';
END $$
"""

_ALONE = """
SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND pid <> ALL (%(kept)s::text::int[])
"""

_RESET = "RESET SESSION AUTHORIZATION; RESET ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); DISCARD TEMP"


@dataclass
class _Database:
    """A database that one test after the other gets, with the sessions that stay open between them.

    Attributes:
        engine: Owns the sessions of the engines that tests get.
        opened: The session that empties the database, once it was opened.
    """

    url: str
    engine: Engine
    opened: Connection | None = None

    @classmethod
    def at(cls, url: str) -> _Database:
        return cls(url, open_engine(url))

    @property
    def keeper(self) -> Connection:
        if self.opened is None:
            self.opened = open_engine(self.url, pool=1).connect().execution_options(isolation_level="AUTOCOMMIT")
        return self.opened

    def engine_for_test(self) -> Engine:
        """An engine with listeners of its own, on the sessions that are open."""
        return self.engine.execution_options()

    def reset_sessions(self) -> list[int]:
        """Puts the sessions that stay open back to how they began; returns the numbers of their backends."""
        try:
            return _reset(self.engine)
        except (DBAPIError, psycopg.Error):
            self.engine.dispose()
            return []

    def empty(self, shape: tuple[Any, ...]) -> bool:
        """Deletes all rows; returns False if a test changed the database's shape."""
        kept = ",".join(map(str, self.reset_sessions()))
        try:
            run(self.keeper, _ALONE, kept=f"{{{kept}}}")
            if _shape_of(self.keeper) != shape:
                return False
            run(self.keeper, _EMPTY)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return False
        return True

    def close(self) -> None:
        """Closes all sessions; those that are needed later are opened anew."""
        self.engine.dispose()
        if self.opened is not None:
            self.opened.close()
            self.opened.engine.dispose()
            self.opened = None


def _reset(engine: Engine) -> list[int]:
    """Resets the idle sessions of an engine, up to a limit, and closes the others."""
    pool = engine.pool
    assert isinstance(pool, QueuePool)
    if pool.checkedout():
        engine.dispose()  # a test left one behind
    kept = []
    with ExitStack() as taken:
        for number in range(pool.checkedin()):
            session = engine.raw_connection()
            taken.callback(session.close)
            driver: Any = session.driver_connection
            if number >= _SESSIONS_LIMIT:
                session.invalidate()
                continue
            driver.execute(_RESET, prepare=False)
            driver.commit()
            kept.append(driver.info.backend_pid)
    return kept


_databases: dict[str, _Database] = {}
_free: list[_Database] = []


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A server of our own, whatever the environment names; SYNC_TEST_DATABASE_URL uses another."""
    os.environ.pop("SYNC_DATABASE_URL", None)
    if url := os.environ.get("SYNC_TEST_DATABASE_URL"):
        yield url
        return
    from sync_orchestrator.database import embedded

    # Not below pytest's folder: each new session of pytest closes that to the server's own user.
    with tempfile.TemporaryDirectory(prefix="sync-tests-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / "data"
        url = embedded.start(folder)
        _forgo_durability(url)
        yield url
        embedded.stop(folder)


def _forgo_durability(url: str) -> None:
    """The tests kill our processes, never the server: it need not wait for the disk."""
    admin = open_engine(url)
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    admin.dispose()


def create(server_url: str, name: str, template: str | None = None) -> str:
    """Makes a database and returns its URL. The one that is copied must have no sessions: those that tests keep end."""
    for database in _databases.values():
        if template is not None and make_url(database.url).database == template:
            database.close()
    _administer(server_url, f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


def drop(server_url: str, url: str) -> None:
    """Ends the connections to a database and drops it."""
    _administer(server_url, f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')


def _administer(server_url: str, statement: str) -> None:
    admin = open_engine(server_url)
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(statement))
    admin.dispose()


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """A migrated database to copy. It and its copies are dropped at the end: the server may be somebody's."""
    name = f"template_{os.getpid()}"
    url = create(server_url, name)
    engine = open_engine(url)
    migrate(engine)
    engine.dispose()
    yield name
    for database in _databases.values():
        database.close()
    if os.environ.get("SYNC_TEST_DATABASE_URL"):
        for made in (*_databases, url):
            drop(server_url, made)
    _databases.clear()
    _free.clear()


@pytest.fixture(scope="session")
def template_shape(server_url: str, template: str) -> tuple[Any, ...]:
    """The template's shape, which copies of it have, to the object's number."""
    url = make_url(server_url).set(database=template).render_as_string(hide_password=False)
    return _with(url, _shape_of)


@pytest.fixture
def database_url(server_url: str, template: str, template_shape: tuple[Any, ...]) -> Iterator[str]:
    """The URL of an empty, migrated database."""
    if _free:
        database = _free.pop()
    else:
        database = _Database.at(create(server_url, f"test_{os.getpid()}_{next(_numbers)}", template))
        _databases[database.url] = database
    yield database.url
    if database.empty(template_shape):
        _free.append(database)
    else:
        database.close()
        del _databases[database.url]
        drop(server_url, database.url)


def _shape_of(connection: Connection) -> tuple[Any, ...]:
    return tuple(run(connection, _SHAPE)[0])


def _with(url: str, work: Callable[[Connection], T]) -> T:
    engine = open_engine(url)
    try:
        with engine.begin() as connection:
            return work(connection)
    finally:
        engine.dispose()


@pytest.fixture
def engine(database_url: str) -> Engine:
    """An engine on an empty, migrated database."""
    return _databases[database_url].engine_for_test()


@pytest.fixture
def fresh_engine(database_url: str) -> Iterator[Engine]:
    """An engine whose sessions are its own, and new: for tests of sessions themselves."""
    engine = open_engine(database_url)
    yield engine
    engine.dispose()
