"""The database, asked from requests: in a thread, not for ever; a failure is a 503 that names what is wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from sync_orchestrator.api.problems import Refused
from sync_orchestrator.core.db import connections

T = TypeVar("T")

SECONDS = 15.0
"""For how long a request waits for the database."""

_log = logging.getLogger("sync_orchestrator.api")


_UNREACHABLE = "The database does not answer; try again later."
_BY_STATE = {
    connections.READ_ONLY: "The database is read-only; try again later.",
    "57": "The database is starting, shutting down or overloaded; try again later.",
    "53": "The database has no room left (disk, memory or connections); try again later.",
    "28": "The database refuses the service's login; try again later.",
    "42501": "The database does not permit what the service has to do; try again later.",
    "55P03": "The database is busy: a lock was not granted in time; try again later.",
    "40": "The database is busy; try again later.",
}
"""By SQLSTATE, or by its class."""


class ApiDatabase:
    """The database of the API service: runs blocking work in threads, and turns its failures into responses."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """Does work in a thread, as ``refuse_on_failure`` says, and waits for it, not for ever."""
        with self.refuse_on_failure():
            async with asyncio.timeout(SECONDS):
                return await asyncio.to_thread(work)

    @contextmanager
    def refuse_on_failure(self) -> Iterator[None]:
        """Raises Refused: 503, which names what is wrong with the database, or 422 for what it cannot store.

        A database that does not answer in time may still carry the work out; the events' ids make sending them again
        safe.
        """
        try:
            yield
        except (DataError, psycopg.DataError) as error:
            _log.error("the database cannot store an event: sqlstate %s", connections.sqlstate_of(error))
            raise Refused(422, "An event cannot be stored; nothing was recorded.") from None
        except (SQLAlchemyError, psycopg.Error, TimeoutError) as error:
            said = describe_failure(error)
            _log.warning("%s (%s, sqlstate %s)", said, type(error).__name__, connections.sqlstate_of(error))
            raise Refused(503, said) from None


def describe_failure(error: Exception) -> str:
    """What is wrong with the database, in a constant sentence."""
    if isinstance(error, PoolTimeout):
        return "The service's database connections are all in use; try again later."
    state = connections.sqlstate_of(error)
    if state is None or state.startswith("08"):
        return _UNREACHABLE
    return _BY_STATE.get(state) or _BY_STATE.get(state[:2]) or "The database failed; try again later."
