"""Heartbeats of processes and tasks: each reports that it is alive, under its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.systems import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


def record_heartbeat(engine: Engine, name: str, detail: dict[str, object] | None = None) -> None:
    """Records that the process or task of this name is alive now."""
    with engine.begin() as connection:
        record_heartbeat_in(connection, name, detail)


def record_heartbeat_in(connection: Connection, name: str, detail: dict[str, object] | None = None) -> None:
    """The same in the caller's transaction."""
    run(connection, queries.UPSERT_HEARTBEAT, name=name, detail=to_jsonb(detail or {}))


def end_heartbeat(engine: Engine, name: str) -> None:
    """Removes the heartbeat of a process or task that has ended in good order."""
    with engine.begin() as connection:
        run(connection, queries.DELETE_HEARTBEAT, name=name)


def seconds_since_heartbeat(engine: Engine, name: str) -> float | None:
    """Returns the age of the newest heartbeat under this name; None if there never was one."""
    with engine.begin() as connection:
        return {row.name: float(row.age) for row in run(connection, queries.LIST_HEARTBEAT_AGES)}.get(name)


def claim_round(connection: Connection, name: str, every_seconds: float) -> bool:
    """Whether a round that one process does from time to time is this process's now.

    The claim is part of the caller's transaction, as the work of the round is: whoever else claims the round waits for
    its end, and does the round itself where it is rolled back.
    """
    return bool(run(connection, queries.CLAIM_ROUND, name=name, every=every_seconds))


def count_drains(connection: Connection, alive_seconds: float) -> AtWork:
    """Counts the drains that were heard of within this time."""
    row = run(connection, queries.COUNT_DRAINS, alive=alive_seconds)[0]
    return AtWork(row.staying, row.leaving, None if row.age is None else float(row.age))


def delete_gone_drains(connection: Connection) -> None:
    """Deletes the heartbeats of drains that ended without a word long ago."""
    run(connection, queries.DELETE_GONE_DRAINS)


@dataclass(frozen=True, slots=True)
class AtWork:
    """How many drains stay, how many wait for somebody to take over, and seconds since one was heard of."""

    staying: int
    leaving: int
    age: float | None


def list_heartbeat_ages(connection: Connection) -> dict[str, float]:
    """Returns the seconds since the newest heartbeat, by the kind of process or task."""
    return {row.name: float(row.age) for row in run(connection, queries.LIST_HEARTBEAT_AGES)}
