"""Heartbeats of drains: each drain announces itself and its planned end, so that a successor takes over in time."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import Engine

from sync_orchestrator.core.systems.heartbeats import (
    AtWork,
    count_drains,
    delete_gone_drains,
    end_heartbeat,
    record_heartbeat,
)

ALIVE_SECONDS = 10.0
"""A drain that has not been heard of for this time is gone, whatever the status of its run is."""


def at_work(engine: Engine) -> AtWork:
    """Returns how many drains were heard of lately."""
    with engine.begin() as connection:
        return count_drains(connection, ALIVE_SECONDS)


class Presence:
    """One drain, as other drains see it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._name = f"drain {uuid4().hex[:12]}"

    def announce_drain(self) -> None:
        """Records the first heartbeat, and deletes those of drains that ended without a word."""
        with self._engine.begin() as connection:
            delete_gone_drains(connection)
        self.record_beat()

    def record_beat(self, *, leaving: bool = False, events: int = 0) -> None:
        """Records a heartbeat."""
        record_heartbeat(self._engine, self._name, {"leaving": leaving, "events": events})

    def remove_heartbeat(self) -> None:
        """Removes the heartbeat of a drain that ends in good order."""
        end_heartbeat(self._engine, self._name)
