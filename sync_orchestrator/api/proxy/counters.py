"""How the proxy's calls fare, counted here and written to the database in batches, not call by call."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from functools import partial

from sync_orchestrator.api.database import ApiDatabase
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.api.proxy.shared_state import SharedState
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.service import rollout

_WRITE_INTERVAL_SECONDS = 1.0

_log = logging.getLogger("sync_orchestrator.api")


class RouteCounters:
    """What is not written yet is lost with the process: rates of some thousand calls do not miss it."""

    def __init__(self, database: ApiDatabase, config: Config, known: SharedState) -> None:
        self._database = database
        self._config = config
        self._known = known
        self._counts: Counter[tuple[str, int, str]] = Counter()
        self._writing: asyncio.Task[None] | None = None

    def count_calls(self, route: str, version: int, *what: str) -> None:
        """Counts one of each; it is written within a second or two."""
        for each in what:
            self._counts[route, version, each] += 1
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_later())

    async def write_counts(self) -> None:
        """Writes what was counted; what cannot be written is kept for the next time."""
        counts, self._counts = self._counts, Counter()
        if not counts:
            return
        work = partial(rollout.record_counts, config=self._config, counts=counts)
        try:
            fell_back = await self._database.run_in_thread(lambda: in_transaction(self._database.engine, work))
        except Refused:
            self._counts += counts
            return
        for name in fell_back:
            _log.warning("route %s: its share fell back to 0", name)
            self._known.expire_snapshot()

    async def close(self) -> None:
        """Writes what is counted and not written yet."""
        if self._writing is not None:
            self._writing.cancel()
        await self.write_counts()

    async def _write_later(self) -> None:
        while self._counts:
            await asyncio.sleep(_WRITE_INTERVAL_SECONDS)
            await self.write_counts()
