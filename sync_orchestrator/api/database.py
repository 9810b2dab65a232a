"""The database, asked from requests: in a thread, not for ever, and one that is down is a 503."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DataError, SQLAlchemyError

from sync_orchestrator.api.problems import Refused

T = TypeVar("T")

_SECONDS = 15.0

_log = logging.getLogger("sync_orchestrator.api")


class Database:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def ask(self, work: Callable[[], T]) -> T:
        """Does work in a thread, as ``wait_for``."""
        return await self.wait_for(asyncio.to_thread(work))

    async def wait_for(self, work: Awaitable[T]) -> T:
        """Waits for work. Raises Refused (503) where the database does not answer, 422 for what it cannot store.

        One that does not answer in time may still carry the work out; the events' ids make sending them again safe.
        """
        try:
            async with asyncio.timeout(_SECONDS):
                return await work
        except DataError as error:
            _log.error("the database cannot store an event: sqlstate %s", getattr(error.orig, "sqlstate", None))
            raise Refused(422, "An event cannot be stored; nothing was recorded.") from None
        except (SQLAlchemyError, TimeoutError) as error:
            _log.warning("the database does not answer: %s, sqlstate %s", type(error).__name__,
                         getattr(getattr(error, "orig", None), "sqlstate", None))
            raise Refused(503, "The database does not answer; try again later.") from None
