"""How statements are run: bound parameters, columns of a batch, transactions that survive a deadlock.

Not here: the statements themselves (``statements/``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psycopg.errors
from psycopg.types.json import Jsonb
from sqlalchemy import Connection, Engine, Row, create_engine
from sqlalchemy.exc import DBAPIError
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

T = TypeVar("T")

_CONCURRENCY = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)


def connect(url: str, *, pool: int = 10) -> Engine:
    """An engine on psycopg 3 that notices connections the server has closed."""
    return create_engine(url, pool_pre_ping=True, pool_size=pool, max_overflow=pool, hide_parameters=True)


def run(connection: Connection, statement: str, **params: Any) -> Sequence[Row[Any]]:
    """Runs one statement with ``%(name)s`` parameters and returns its rows (none for a statement without)."""
    result = connection.exec_driver_sql(statement, params)
    return result.all() if result.returns_rows else ()


def in_transaction(engine: Engine, work: Callable[[Connection], T]) -> T:
    """Does ``work`` in one transaction, and again from its start where it lost to a deadlock."""

    @retry(
        retry=retry_if_exception(_lost_to_another),
        stop=stop_after_attempt(8),
        wait=wait_random_exponential(multiplier=0.02, max=1),
        reraise=True,
    )
    def attempt() -> T:
        with engine.begin() as connection:
            return work(connection)

    return attempt()


def json(value: Any) -> Jsonb | None:
    """A value bound as jsonb; None stays SQL NULL."""
    return None if value is None else Jsonb(value)


def _lost_to_another(error: BaseException) -> bool:
    return isinstance(error, DBAPIError) and isinstance(error.orig, _CONCURRENCY)
