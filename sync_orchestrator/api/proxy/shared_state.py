"""What every replica has to know within a second: open breakers, and the share of each route's traffic.

It is read when it is asked for and older than half a second; while the database does not answer, what was last known
holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from sync_orchestrator.api.database import ApiDatabase
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.core.service import rollout
from sync_orchestrator.core.service.rollout import RolloutState
from sync_orchestrator.core.systems import breaker

_GOOD_FOR = 0.5
_MAX_READ_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What all replicas share, as it was at one moment."""

    open_breakers: frozenset[str]
    rollouts: Mapping[str, RolloutState]


class SharedState:
    """The shared state of breakers and rollouts, reread from the database when it is too old."""

    def __init__(self, database: ApiDatabase) -> None:
        self._database = database
        self._lock = asyncio.Lock()
        self._until = 0.0
        self._snapshot: Snapshot | None = None

    async def read_snapshot(self) -> Snapshot:
        """Raises Refused (503) where nothing was ever known."""
        if (found := self._get_current_snapshot()) is not None:
            return found
        async with self._lock:
            if (found := self._get_current_snapshot()) is not None:
                return found
            try:
                async with asyncio.timeout(_MAX_READ_SECONDS):
                    self._snapshot = await self._database.run_in_thread(self._load_snapshot)
            except (Refused, TimeoutError):
                if self._snapshot is None:
                    raise Refused(503, "The database does not answer; try again later.") from None
            self._until = time.monotonic() + _GOOD_FOR
            return self._snapshot

    def expire_snapshot(self) -> None:
        """Has it read anew."""
        self._until = 0.0

    def _get_current_snapshot(self) -> Snapshot | None:
        return self._snapshot if time.monotonic() < self._until else None

    def _load_snapshot(self) -> Snapshot:
        with self._database.engine.begin() as connection:
            return _read_snapshot(connection)


def _read_snapshot(connection: Connection) -> Snapshot:
    return Snapshot(breaker.open_ones(connection), rollout.list_rollouts(connection))
