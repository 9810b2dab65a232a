"""Who drains: each drain says that it is there and when it is about to go, so that another takes over before it goes.

Not here: what a drain does (``drain.py``), who asks for another (``sensors/changes.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import Engine

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.core.systems.heartbeats import end_heartbeat, record_heartbeat

ALIVE_SECONDS = 10.0
"""A drain that has not been heard of for so long is gone, whatever its run's status says."""


@dataclass(frozen=True, slots=True)
class AtWork:
    """How many drains stay, how many wait for somebody to take over, and seconds since one was heard of."""

    staying: int
    leaving: int
    age: float | None


def at_work(engine: Engine) -> AtWork:
    """The drains that were heard of lately."""
    with engine.begin() as connection:
        row = run(connection, systems_queries.COUNT_DRAINS, alive=ALIVE_SECONDS)[0]
    return AtWork(row.staying, row.leaving, None if row.age is None else float(row.age))


class Presence:
    """One drain, as the others see it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._name = f"drain {uuid4().hex[:12]}"

    def begin(self) -> None:
        """Forgets those that ended without a word long ago, too."""
        with self._engine.begin() as connection:
            run(connection, systems_queries.DELETE_GONE_DRAINS)
        self.beat()

    def beat(self, *, leaving: bool = False, events: int = 0) -> None:
        """Says that it is there."""
        record_heartbeat(self._engine, self._name, {"leaving": leaving, "events": events})

    def end(self) -> None:
        """Says that it has ended in good order."""
        end_heartbeat(self._engine, self._name)
