"""Fallback alerting: while no worker sends alerts, the API service evaluates their conditions and sends them.

Outcomes and polls wait for a worker.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from sync_orchestrator.api.database import ApiDatabase
from sync_orchestrator.config import Config
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.operations.maintenance import watch_if_due
from sync_orchestrator.core.operations.worker_watch import watch_workers

LOOK_SECONDS = 30.0
_OF_ALERTS = ("alerts", "watch")
"""The tasks of a worker that the service does in its place."""

_log = logging.getLogger("sync_orchestrator.watchdog")


class Watchdog:
    """Looks from its start to its end; several services at once do no harm."""

    def __init__(self, database: ApiDatabase, config: Config, every: float = LOOK_SECONDS) -> None:
        self._database = database
        self._config = config
        self._every = every
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins in the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._watch_repeatedly())

    async def close(self) -> None:
        """Ends it."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _watch_repeatedly(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            try:
                await asyncio.to_thread(self.watch_once)
            except Exception as error:  # whatever is wrong with it must not end it
                _log.warning("Nobody looks after the alerts now: %s.", type(error).__name__)

    def watch_once(self) -> int:
        """One look; returns how many messages were sent."""
        engine, settings = self._database.engine, self._config.alerts
        workers = watch_workers(engine, settings.silent_after)
        stalled = {task.name for task in workers.stalled_tasks(settings.silent_after)}
        if not workers.is_silent(settings.silent_after) and stalled.isdisjoint(_OF_ALERTS):
            return 0
        watch_if_due(engine, settings, self._config.entities)
        return alerts.send_due_alerts(engine, settings)
