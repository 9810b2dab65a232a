"""A source system that is a third party, too: it is not read while the circuit breaker of that is open."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.ports import SourceSystem
from sync_orchestrator.core.source_wrapper import SourceWrapper
from sync_orchestrator.core.systems.breaker import read_system
from sync_orchestrator.errors import CallFailed, Failure

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_LOOK_AGAIN_SECONDS = 1.0


class SharedSystemSource(SourceWrapper):
    """A source system whose reads wait for the circuit breaker of the third party that it is.

    Rate, login, hold-off and limits of calls are those of the client that
    both use. A read while the breaker is open fails as THROTTLED, which spends no attempt. Pushes probe the third
    party. Where none has done so for a while, since there is nothing to push, reads go on: they do not wait for ever.
    """

    def __init__(self, inner: SourceSystem, engine: Engine, system: str, probe_cap_seconds: float) -> None:
        super().__init__(inner)
        self._engine = engine
        self._system = system
        self._unprobed_seconds = 2 * probe_cap_seconds
        self._look_at = 0.0
        self._open_for: float | None = None

    async def prepare_call(self) -> None:
        """Raises CallFailed (THROTTLED) while the breaker is open; looks at the database once a second at most."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_AGAIN_SECONDS
            self._open_for = await asyncio.to_thread(in_transaction, self._engine, self._read_open_seconds)
        if self._open_for is not None:
            raise CallFailed(
                Failure.THROTTLED,
                f"the circuit breaker of {self._system} is open: it is not read until a push succeeds",
                retry_after=self._open_for,
                about_system=True,
            )

    def _read_open_seconds(self, connection: Connection) -> float | None:
        """The seconds until the next probe; None where the source may be read."""
        state = read_system(connection, self._system)
        if not state.is_open or state.probe_in < -self._unprobed_seconds:
            return None
        return max(state.probe_in, _LOOK_AGAIN_SECONDS)
