"""Sessions of our own database: what is set for each of them, and which of them are no longer usable.

Every connection to that database starts from a URL of ``with_settings``: the engine, the group commit, LISTEN, and
Dagster's storage. The settings travel with the connection's startup and cost no round trip. What the URL sets itself
takes precedence. SQLAlchemy is imported by the functions that need it: commands that only look do without it.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import psycopg

from sync_orchestrator.core.db.session_settings import add_settings
from sync_orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine import URL, ExceptionContext

POOLER = (
    "the database is reached through a connection pooler (such as PgBouncer) that gives each transaction another "
    "session or refuses session settings, so settings, prepared statements and LISTEN do not work: set "
    "SYNC_DATABASE_URL to the Postgres server itself, or to a pool with pool_mode = session and "
    "ignore_startup_parameters = options"
)
_REFUSED_SETTINGS = "unsupported startup parameter"
_PROTOCOL_VIOLATION = "08P01"  # a pool of single statements refuses BEGIN
_LOOKS = 3

READ_ONLY = "25006"
_SHUT_DOWN = ("57P01", "57P02", "57P03", "57P04", "57P05")
_BROKEN_STATES = frozenset(
    {
        READ_ONLY,
        *_SHUT_DOWN,
        "25P03",
        "25P04",  # ended by a timeout of the server
        "26000",
        "42P05",  # prepared statements are not as the driver believes
        "0A000",  # a cached plan must not change its result type
        "08000",
        "08001",
        "08003",
        "08004",
        "08006",
        "08007",
        "08P01",
    }
)
_REPORTED_READ_ONLY = ("default_transaction_read_only", "in_hot_standby")


# Settings ---------------------------------------------------------------------------------------------------------


def with_settings(url: URL | str, *, named: bool = True) -> URL:
    """The same database with the settings of our sessions; repeating it changes nothing.

    Args:
        url: The database. Its own parameters and ``options`` take precedence.
        named: Whether ``application_name`` says which process this is; not for a URL that other processes get.
    """
    from sqlalchemy.engine import make_url

    url = make_url(url)
    query: dict[str, Any] = dict(url.query)
    add_settings(query, named=named)
    return url.set(query=query)


def build_arguments(url: URL) -> dict[str, Any]:
    """The keyword arguments by which psycopg connects to that URL, as SQLAlchemy passes them."""
    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

    dialect = PGDialect_psycopg(dbapi=psycopg)  # type: ignore[no-untyped-call]
    _, named = dialect.create_connect_args(url)  # type: ignore[no-untyped-call]
    return {name: value for name, value in named.items() if name != "context"}


def allow_idle(connection: Any) -> None:
    """Lets the present transaction idle for an hour: it holds no locks, and the client has long work to do."""
    connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = '1h'")


# Sessions that are no longer usable -------------------------------------------------------------------------------


def watch_engine(engine: Engine) -> Engine:
    """Has an engine, of psycopg 3 or 2, throw away connections whose session is no longer usable.

    After such an error the others that were opened before are thrown away too: what happened to the server happened
    to all of them.
    """
    from sqlalchemy import event

    event.listen(engine, "handle_error", _judge_error)
    event.listen(engine, "checkin", _drop_read_only)
    return engine


def _judge_error(context: ExceptionContext) -> None:
    if context.connection is not None and sqlstate_of(context.original_exception) in _BROKEN_STATES:
        context.is_disconnect = True


def _drop_read_only(driver: Any, record: Any) -> None:
    """A session that began while the database was read-only stays read-only for ever: it is not kept."""
    if driver is not None and (driver.closed or reports_read_only(driver)):
        record.invalidate()


def reports_read_only(driver: object) -> bool:
    """Whether the server (from version 14 on) reported this session as one that cannot write. No round trip."""
    return any(_read_parameter(driver, name) == "on" for name in _REPORTED_READ_ONLY)


def _read_parameter(driver: Any, name: str) -> str | None:
    if hasattr(driver, "get_parameter_status"):  # psycopg 2
        value: str | None = driver.get_parameter_status(name)
        return value
    return driver.info.parameter_status(name)  # type: ignore[no-any-return]


def sqlstate_of(error: BaseException | None) -> str | None:
    """The SQLSTATE of an error of SQLAlchemy, psycopg 3 or psycopg 2."""
    error = original_error(error)
    found = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return found if isinstance(found, str) else None


def lost_session(error: BaseException | None) -> bool:
    """Whether an error is about the session, not about the statement: a fresh session may do what this one cannot."""
    if getattr(error, "connection_invalidated", False):
        return True
    state = sqlstate_of(error)
    return state in _BROKEN_STATES or (state is None and isinstance(original_error(error), psycopg.OperationalError))


def original_error(error: BaseException | None) -> BaseException | None:
    """The driver's own error, of which SQLAlchemy made its own."""
    found: BaseException | None = getattr(error, "orig", error)
    return found


# Poolers ----------------------------------------------------------------------------------------------------------


def require_own_sessions(engine: Engine) -> None:
    """Raises ConfigError where connections share sessions, as they do behind a pooler in transaction mode.

    Raises what the database raises where it cannot be reached.
    """
    from sqlalchemy.exc import DBAPIError

    try:
        shared = seems_pooled(engine) and shares_sessions(engine)
    except (DBAPIError, psycopg.Error) as error:
        if _REFUSED_SETTINGS not in str(error) and sqlstate_of(error) != _PROTOCOL_VIOLATION:
            raise
        shared = True
    if shared:
        raise ConfigError(POOLER)


def seems_pooled(engine: Engine) -> bool:
    """Whether something between us and the server hands out sessions: a statement runs elsewhere than announced."""
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        return bool(_read_backend_pid(driver) != driver.info.backend_pid)


def shares_sessions(engine: Engine) -> bool:
    """Whether transactions of one connection run in sessions that other connections use too.

    Each of a few transactions is held open while the first connection looks where its statements run.
    """
    settings = build_arguments(engine.url)
    with ExitStack() as opened:
        one = opened.enter_context(closing(psycopg.connect(**settings, autocommit=True)))
        home = _read_backend_pid(one)
        for _ in range(_LOOKS):
            other = opened.enter_context(closing(psycopg.connect(**settings)))
            if _read_backend_pid(other) == home or _read_backend_pid(one) != home:
                return True
    return False


def _read_backend_pid(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return 0 if row is None else int(row[0])
