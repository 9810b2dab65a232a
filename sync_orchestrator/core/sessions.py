"""Sessions of our own database: what is set for each of them, and which of them are no longer usable.

Every connection to that database starts from a URL of ``with_settings``: the engine, the group commit, LISTEN, and
Dagster's storage. The settings travel with the connection's startup and cost no round trip. What the URL sets itself
takes precedence.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Engine, event
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError

from sync_orchestrator.core.errors import ConfigError

IDLE_IN_TRANSACTION_SECONDS = 12
"""The server ends a session that leaves a transaction idle for longer: its process hangs, and others wait for its
locks. Transactions that hold no locks and do long work on the client's side call ``allow_idle``."""

_KEEPALIVE = {"idle": 5, "interval": 2, "count": 3}
_ACKNOWLEDGED_WITHIN_SECONDS = 10
_CONNECT_SECONDS = 10

_CLIENT = {
    "connect_timeout": _CONNECT_SECONDS, "client_encoding": "utf8", "keepalives": 1,
    **{f"keepalives_{name}": value for name, value in _KEEPALIVE.items()},
    "tcp_user_timeout": _ACKNOWLEDGED_WITHIN_SECONDS * 1000,
}
_SERVER = {
    # Plans are made for each execution: one made while a table was small would be kept while it grows. JIT compilation
    # costs seconds where a plan's estimated cost is high, and these statements take milliseconds.
    "jit": "off", "plan_cache_mode": "force_custom_plan",
    # The driver reads these forms only, and a database or role may have others set.
    "DateStyle": "ISO", "IntervalStyle": "postgres", "TimeZone": "UTC", "extra_float_digits": "1",
    "bytea_output": "hex", "default_transaction_isolation": "read committed",
    # The server notices a client whose machine lost its power, and releases its locks.
    **{f"tcp_keepalives_{name}": str(value) for name, value in _KEEPALIVE.items()},
    "tcp_user_timeout": str(_ACKNOWLEDGED_WITHIN_SECONDS * 1000),
    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_SECONDS * 1000),
}
_APPLY = "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS settings(name, value)"
_SAMPLE = "SELECT pg_backend_pid(), current_setting('jit'), current_setting('plan_cache_mode')"

POOLER = (
    "the database is reached through a connection pooler (such as PgBouncer) that gives each transaction another "
    "session or refuses session settings, so settings, prepared statements and LISTEN do not work: set "
    "SYNC_DATABASE_URL to the Postgres server itself, or to a pool with pool_mode = session and "
    "ignore_startup_parameters = options")
_REFUSED_SETTINGS = "unsupported startup parameter"
_PROTOCOL_VIOLATION = "08P01"  # a pool of single statements refuses BEGIN
_LOOKS = 3

READ_ONLY = "25006"
_SHUT_DOWN = ("57P01", "57P02", "57P03", "57P04", "57P05")
_BROKEN_STATES = frozenset({
    READ_ONLY, *_SHUT_DOWN,
    "25P03", "25P04",  # ended by a timeout of the server
    "26000", "42P05",  # prepared statements are not as the driver believes
    "0A000",           # a cached plan must not change its result type
    "08000", "08001", "08003", "08004", "08006", "08007", "08P01",
})
_REPORTED_READ_ONLY = ("default_transaction_read_only", "in_hot_standby")


# Settings ---------------------------------------------------------------------------------------------------------

def with_settings(url: URL | str, *, named: bool = True) -> URL:
    """The same database with the settings of our sessions; repeating it changes nothing.

    Args:
        url: The database. Its own parameters and ``options`` take precedence.
        named: Whether ``application_name`` says which process this is; not for a URL that other processes get.
    """
    url = make_url(url)
    query: dict[str, Any] = dict(url.query)
    for name, value in _CLIENT.items():
        query.setdefault(name, str(value))
    if named:
        query.setdefault("application_name", application_name())
    if len(_hosts(query)) > 1:
        query.setdefault("target_session_attrs", "read-write")
    ours, given = _options(), _one(query.get("options", ""))
    if not given.startswith(ours):
        query["options"] = f"{ours} {given}".strip()
    return url.set(query=query)


def arguments(url: URL) -> dict[str, Any]:
    """The keyword arguments by which psycopg connects to that URL, as SQLAlchemy passes them."""
    dialect = PGDialect_psycopg(dbapi=psycopg)  # type: ignore[no-untyped-call]
    _, named = dialect.create_connect_args(url)  # type: ignore[no-untyped-call]
    return {name: value for name, value in named.items() if name != "context"}


def application_name() -> str:
    """Which process this is, for ``pg_stat_activity``: its program, its command and its process id."""
    program = Path(sys.argv[0] or "python")
    words = [program.parent.name if program.name == "__main__.py" else program.stem]
    words += [word for word in sys.argv[1:3] if word.replace("-", "").replace("_", "").isalnum()
              and not word.startswith("-")]
    name = " ".join(["sync-orchestrator", *(word for word in words if word not in ("sync_orchestrator",
                                                                                "sync-orchestrator"))])
    return f"{name[:50]} {os.getpid()}".encode("ascii", "replace").decode()


def settle(driver: psycopg.Connection[Any]) -> None:
    """Checks a new connection with one round trip; sets what a pooler in session mode did not pass on."""
    before, driver.autocommit = driver.autocommit, True
    try:
        if (row := driver.execute(_SAMPLE).fetchone()) is not None and _must_set(driver.info.backend_pid, row):
            driver.execute(_APPLY, (list(_SERVER), list(_SERVER.values())))
    finally:
        driver.autocommit = before


async def settle_async(driver: psycopg.AsyncConnection[Any]) -> None:
    """``settle`` for a connection in autocommit mode in an event loop."""
    row = await (await driver.execute(_SAMPLE)).fetchone()
    if row is not None and _must_set(driver.info.backend_pid, row):
        await driver.execute(_APPLY, (list(_SERVER), list(_SERVER.values())))


def allow_idle(connection: Any) -> None:
    """Lets the present transaction idle for an hour: it holds no locks, and the client has long work to do."""
    connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '1h'")


def _must_set(backend: int, row: tuple[Any, ...]) -> bool:
    return bool(row[0] != backend and row[1:] != (_SERVER["jit"], _SERVER["plan_cache_mode"]))


def _options() -> str:
    return " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in _SERVER.items())


def _hosts(query: dict[str, Any]) -> list[str]:
    hosts = query.get("host", ())
    return [each for host in ((hosts,) if isinstance(hosts, str) else hosts) for each in host.split(",")]


def _one(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else " ".join(value)


# Sessions that are no longer usable -------------------------------------------------------------------------------

def watch(engine: Engine) -> Engine:
    """Has an engine, of psycopg 3 or 2, throw away connections whose session is no longer usable.

    After such an error the others that were opened before are thrown away too: what happened to the server happened
    to all of them.
    """
    event.listen(engine, "handle_error", _judge)
    event.listen(engine, "checkin", _leave)
    return engine


def _judge(context: ExceptionContext) -> None:
    if context.connection is not None and sqlstate(context.original_exception) in _BROKEN_STATES:
        context.is_disconnect = True


def _leave(driver: Any, record: Any) -> None:
    """A session that began while the database was read-only stays read-only for ever: it is not kept."""
    if driver is not None and (driver.closed or reports_read_only(driver)):
        record.invalidate()


def reports_read_only(driver: Any) -> bool:
    """Whether the server (from version 14 on) reported this session as one that cannot write. No round trip."""
    return any(_reported(driver, name) == "on" for name in _REPORTED_READ_ONLY)


def _reported(driver: Any, name: str) -> str | None:
    if hasattr(driver, "get_parameter_status"):  # psycopg 2
        value: str | None = driver.get_parameter_status(name)
        return value
    return driver.info.parameter_status(name)  # type: ignore[no-any-return]


def sqlstate(error: BaseException | None) -> str | None:
    """The SQLSTATE of an error of SQLAlchemy, psycopg 3 or psycopg 2."""
    error = error.orig if isinstance(error, DBAPIError) else error
    found = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return found if isinstance(found, str) else None


def lost_session(error: BaseException | None) -> bool:
    """Whether an error is about the session, not about the statement: a fresh session may do what this one cannot."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    state = sqlstate(error)
    original = error.orig if isinstance(error, DBAPIError) else error
    return state in _BROKEN_STATES or (state is None and isinstance(original, psycopg.OperationalError))


# Poolers ----------------------------------------------------------------------------------------------------------

def require_own_sessions(engine: Engine) -> None:
    """Raises ConfigError where connections share sessions, as they do behind a pooler in transaction mode.

    Raises what the database raises where it cannot be reached.
    """
    try:
        shared = seems_pooled(engine) and shares_sessions(engine)
    except (DBAPIError, psycopg.Error) as error:
        if _REFUSED_SETTINGS not in str(error) and sqlstate(error) != _PROTOCOL_VIOLATION:
            raise
        shared = True
    if shared:
        raise ConfigError(POOLER)


def seems_pooled(engine: Engine) -> bool:
    """Whether something between us and the server hands out sessions: a statement runs elsewhere than announced."""
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        return bool(_backend(driver) != driver.info.backend_pid)


def shares_sessions(engine: Engine) -> bool:
    """Whether transactions of one connection run in sessions that other connections use too.

    Each of a few transactions is held open while the first connection looks where its statements run.
    """
    settings = arguments(engine.url)
    with ExitStack() as opened:
        one = opened.enter_context(closing(psycopg.connect(**settings, autocommit=True)))
        home = _backend(one)
        for _ in range(_LOOKS):
            other = opened.enter_context(closing(psycopg.connect(**settings)))
            if _backend(other) == home or _backend(one) != home:
                return True
    return False


def _backend(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return 0 if row is None else int(row[0])
