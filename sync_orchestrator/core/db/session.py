"""How statements are run: bound parameters, columns of a batch, transactions that survive a deadlock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import psycopg
import psycopg.errors
from psycopg.types.json import Jsonb, set_json_loads
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from sync_orchestrator import exact_json
from sync_orchestrator.core.db import connections
from sync_orchestrator.core.db.array_dumper import Columns
from sync_orchestrator.core.db.session_settings import apply_settings

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

T = TypeVar("T")

_STREAMED = 10_000
_AVOIDED = ("seqscan", "bitmapscan", "hashjoin", "mergejoin")
_ONE_BY_ONE = "SELECT " + ", ".join(f"set_config('enable_{way}', 'off', true)" for way in _AVOIDED)
_ONE_BY_ONE_IN_ORDER = f"{_ONE_BY_ONE}, set_config('enable_sort', 'off', true)"
_CONCURRENCY = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)


def open_engine(url: str, *, pool: int = 10) -> Engine:
    """An engine on psycopg 3 whose sessions are set up, and thrown away, as ``session_settings.py`` says."""
    from sqlalchemy import create_engine, event

    engine = create_engine(
        connections.with_settings(url),
        pool_pre_ping=True,
        pool_size=pool,
        max_overflow=pool,
        hide_parameters=True,
        use_native_hstore=False,
    )
    event.listen(engine, "connect", lambda driver, _: prepare_session(driver))
    return connections.watch_engine(engine)


def prepare_session(driver: Any) -> None:
    """Sets up a new connection of psycopg 3: how values travel, and the settings of its session."""
    driver.adapters.register_dumper(list, Columns)
    set_json_loads(_load_json, driver)
    apply_settings(driver)


def run(connection: Connection, statement: str, **params: object) -> Sequence[Row[Any]]:
    """Runs one statement with ``%(name)s`` parameters and returns its rows (none for a statement without)."""
    result = connection.exec_driver_sql(statement, params)
    return result.all() if result.returns_rows else ()


def force_index_scans(connection: Connection, *, in_order: bool = False) -> None:
    """Has the rest of this transaction find its rows one by one, by indices; ``in_order``: and in their order.

    A queue fills and empties faster than statistics are taken: by these a table that has grown may look empty, and a
    batch of some hundred keys be joined by reading all of it, or all that is due be sorted for the first of it.
    """
    run(connection, _ONE_BY_ONE_IN_ORDER if in_order else _ONE_BY_ONE)


def stream_rows(connection: Connection, statement: str, **params: object) -> Iterator[list[tuple[Any, ...]]]:
    """Some thousand rows at a time of a statement whose rows need not fit into memory; bytea as bytes."""
    driver: Any = connection.connection.driver_connection
    run(connection, "SET LOCAL cursor_tuple_fraction = 1")  # all of them are wanted, not the first ones soon
    connections.allow_idle(connection)  # the reader may take its time with each of them
    with driver.cursor(name="streamed") as cursor:
        cursor.execute(statement, params, binary=True)
        while rows := cursor.fetchmany(_STREAMED):
            yield rows


def in_transaction(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Does ``work`` in one transaction, and again from its start where it lost to a deadlock.

    Where its session turned out to be unusable before the commit began, it is done once more in a fresh session.
    """

    def run_attempt() -> T:
        try:
            return _in_session(engine, work)
        except _SessionLost:
            pass
        with engine.begin() as connection:
            return work(connection)

    return _again(run_attempt)


class _SessionLost(Exception):
    """The session failed before anything can have been committed."""


def _in_session(engine: Engine, work: Callable[[Connection], T]) -> T:
    from sqlalchemy.exc import DBAPIError

    with engine.begin() as connection:
        try:
            return work(connection)
        except (DBAPIError, psycopg.Error) as error:
            if connections.lost_session(error):
                connection.invalidate()
                raise _SessionLost from error
            raise


def to_jsonb(value: object) -> Jsonb | None:
    """A value bound as jsonb; None stays SQL NULL."""
    return None if value is None else Jsonb(value, dumps=dump_json)


def as_bytes(value: Any) -> bytes | None:
    """A bytea of a row, whichever kind of bytes the driver made of it; None where it is NULL."""
    return None if value is None else bytes(value)


def dump_json(value: object) -> str | bytes:
    """A value as jsonb takes it."""
    try:
        return orjson.dumps(value, default=exact_json.decimal_fragment)
    except TypeError:  # whole numbers of more than 64 bits
        return exact_json.dump_text(value, ascii_only=True)


def _load_json(text: str | bytes) -> Any:
    return exact_json.parse(text.encode() if isinstance(text, str) else text)


def lost_to_another(error: BaseException) -> bool:
    """Whether a transaction failed only because of another, so that it is worth doing again."""
    return isinstance(connections.original_error(error), _CONCURRENCY)


AGAIN: Any = {
    "retry": retry_if_exception(lost_to_another),
    "stop": stop_after_attempt(8),
    "wait": wait_random_exponential(multiplier=0.02, max=1),
    "reraise": True,
}
"""For tenacity: how a transaction is done again."""

_again = Retrying(**AGAIN)
