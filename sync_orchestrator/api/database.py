"""The database, asked from requests: in a thread, not for ever, and one that is down is a 503."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, SQLAlchemyError

from sync_orchestrator.api.problems import Refused

T = TypeVar("T")

SECONDS = 15.0
"""For how long a request waits for the database."""

_log = logging.getLogger("sync_orchestrator.api")


class Database:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def ask(self, work: Callable[[], T]) -> T:
        """Does work in a thread, as ``answering`` says, and waits for it, not for ever."""
        with self.answering():
            async with asyncio.timeout(SECONDS):
                return await asyncio.to_thread(work)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Raises Refused (503) where the database does not answer in here, 422 for what it cannot store.

        One that does not answer in time may still carry the work out; the events' ids make sending them again safe.
        """
        try:
            yield
        except (DataError, psycopg.DataError) as error:
            _log.error("the database cannot store an event: sqlstate %s", _sqlstate(error))
            raise Refused(422, "An event cannot be stored; nothing was recorded.") from None
        except (SQLAlchemyError, psycopg.Error, TimeoutError) as error:
            _log.warning("the database does not answer: %s, sqlstate %s", type(error).__name__, _sqlstate(error))
            raise Refused(503, "The database does not answer; try again later.") from None


def _sqlstate(error: Exception) -> str | None:
    return getattr(getattr(error, "orig", error), "sqlstate", None)
