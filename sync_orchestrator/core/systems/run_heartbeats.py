"""Heartbeats of runs: a run is alive while its process says so, whatever its status is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.systems import queries
from sync_orchestrator.core.systems.heartbeats import end_heartbeat, record_heartbeat

BEAT_SECONDS = 5.0
"""The time between two heartbeats of a run."""

DEAD_AFTER_SECONDS = 60.0
"""A run whose heartbeat has not moved for this long is dead."""

NEVER_BEATEN_SECONDS = 600.0
"""The same for a run that never had one: its process died, or did not come up, before its first heartbeat."""

MAX_GAP_SECONDS = 30.0
"""The most that counts between two looks: nobody beats while the database, or the machine, is down."""

_DATABASE_ERRORS = (SQLAlchemyError, psycopg.Error)
_log = logging.getLogger("sync_orchestrator.runs")


@dataclass(frozen=True, slots=True)
class Watched:
    """A run under way: its last heartbeat (seconds since 1970), and for how long it was seen not to move."""

    beat: float | None
    still_seconds: float

    @property
    def is_dead(self) -> bool:
        """Whether nothing is left of the run's process."""
        return self.still_seconds >= (NEVER_BEATEN_SECONDS if self.beat is None else DEAD_AFTER_SECONDS)


@contextmanager
def keep_run_heartbeat(engine: Engine, run_id: str) -> Iterator[None]:
    """Keeps up a run's heartbeat from a thread of its own until the block is left."""
    name, stop = f"run {run_id}", threading.Event()

    def beat_until_stopped() -> None:
        while not stop.wait(BEAT_SECONDS):
            try:
                record_heartbeat(engine, name)
            except _DATABASE_ERRORS as error:
                _log.warning("the heartbeat of run %s was not written: %s", run_id, type(error).__name__)

    with suppress(*_DATABASE_ERRORS):  # the run fails by itself where it needs the database
        record_heartbeat(engine, name)
    thread = threading.Thread(target=beat_until_stopped, name=f"beat {run_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with suppress(*_DATABASE_ERRORS):
            end_heartbeat(engine, name)


def watch_runs(
    engine: Engine, known: Mapping[str, Watched], running: Collection[str], gap_seconds: float
) -> dict[str, Watched]:
    """What is known of the runs that are said to be under way, ``gap_seconds`` after the last look."""
    with engine.begin() as connection:
        beats = {row.run_id: float(row.at) for row in run(connection, queries.LIST_RUN_HEARTBEATS)}
    return {run_id: update_watched(known.get(run_id), beats.get(run_id), gap_seconds) for run_id in running}


def update_watched(known: Watched | None, beat: float | None, gap_seconds: float) -> Watched:
    """What is known of one run after another look. Pure."""
    if known is None or known.beat != beat:
        return Watched(beat, 0.0)
    return Watched(beat, known.still_seconds + min(gap_seconds, MAX_GAP_SECONDS))


def forget_run(engine: Engine, run_id: str) -> None:
    """Removes the heartbeat of a run that has ended."""
    end_heartbeat(engine, f"run {run_id}")
