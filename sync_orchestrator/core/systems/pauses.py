"""Pushes that wait: entities and third parties that an operator paused, suspended ones, and open circuit breakers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row

from sync_orchestrator.core.db.notify import notify_work
from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.systems import queries
from sync_orchestrator.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


@dataclass(frozen=True, slots=True)
class Pause:
    """Pushes of an entity wait.

    ``reason`` says why, ``is_paused`` whether an operator paused them; ``waiting`` is the number of records that wait,
    ``next_step`` what ends it.
    """

    entity: str
    reason: str
    is_paused: bool
    waiting: int
    next_step: str

    def to_text(self) -> str:
        """The pause in one line."""
        return f"{self.reason}: {self.waiting} wait"


def pauses_of(connection: Connection, systems: Mapping[str, str]) -> dict[str, Pause]:
    """The pauses by entity; entities whose pushes go out have none.

    Args:
        connection: A connection within a transaction.
        systems: Third parties by the entities that are mirrored to them.
    """
    rows = run(connection, queries.LIST_PAUSES, systems=to_jsonb(dict(systems)))
    return {row.name: _pause_of(row) for row in rows}


def why_push_waits(connection: Connection, entity: str, system: str) -> str | None:
    """Returns why nothing of an entity is pushed now, and what ends that; None while pushes go out."""
    pause = pauses_of(connection, {entity: system}).get(entity)
    return None if pause is None else f"pushes wait: {pause.reason}; {pause.next_step}"


def _pause_of(row: Row[Any]) -> Pause:
    paused = [name for name, is_paused in ((row.name, row.entity_paused), (row.system, row.system_paused)) if is_paused]
    if paused:
        commands = " and ".join(f"`sync-orchestrator resume {name}`" for name in paused)
        return Pause(
            row.name,
            f"{' and '.join(paused)} {'are' if len(paused) > 1 else 'is'} paused",
            True,
            row.waiting,
            f"launch the job `resume`, or run {commands}",
        )
    if row.suspended_at is not None:
        return Pause(
            row.name,
            f"pushes to {row.system} are suspended ({row.suspended_reason})",
            False,
            row.waiting,
            "run `sync-orchestrator adopt`",
        )
    return Pause(
        row.name,
        f"the circuit breaker of {row.system} is open since {row.open_since:%Y-%m-%d %H:%M:%S %Z}",
        False,
        row.waiting,
        "pushes go on when a probe succeeds; look at the third party",
    )


def list_paused_entities(connection: Connection) -> set[str]:
    """Returns the entities that an operator paused."""
    return {row.name for row in run(connection, queries.LIST_PAUSED_ENTITIES)}


def set_paused(engine: Engine, name: str, entities: set[str], *, paused: bool) -> None:
    """Pauses or resumes the pushes of an entity, or of a whole third party; events go on being archived.

    Resuming a third party also ends the time for which its calls are held off, and the limit of its calls at once.

    Raises NotFound for a name that is neither.
    """
    with engine.begin() as connection:
        if name in entities:
            run(connection, queries.PAUSE_ENTITY, name=name, paused=paused)
        elif not run(connection, queries.PAUSE_SYSTEM, name=name, paused=paused):
            raise NotFound(f"neither an entity nor a third party is called '{name}'")
        notify_work(connection)
