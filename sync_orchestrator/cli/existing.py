"""What commands work on, which must exist: the database, the configured systems, an entity, its business groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sync_orchestrator.cli.terminal import print_line
from sync_orchestrator.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sync_orchestrator.core.context import Context, EntityContext


def existing_database() -> Engine:
    """The database; raises ConfigError where there is none, instead of making one."""
    from sync_orchestrator import composition

    composition.require_database()
    return composition.open_database()


def existing_database_to_read() -> Engine:
    """The same for functions that only read; it does without SQLAlchemy where it can."""
    from sync_orchestrator import composition

    composition.require_database()
    return composition.open_database_to_read()


def existing_context() -> Context:
    """All that is configured, on the database that is there."""
    from sync_orchestrator import composition

    composition.require_database()
    return composition.open_context()


def entity_named(context: Context, name: str) -> EntityContext:
    """An entity; raises NotFound, which names those that there are."""
    if name not in context.entities:
        raise NotFound(f"there is no entity '{name}'; there is {', '.join(context.entities)}")
    return context.entities[name]


def groups_of(context: Context, entity: EntityContext) -> list[str]:
    """The business groups of an entity that are known by now."""
    from sync_orchestrator.core.groups.registry import known_groups

    with context.engine.begin() as connection:
        return known_groups(connection, entity.name)


def say_who_pushes(engine: Engine, what: str) -> None:
    """Says whether ``what`` is pushed by something that runs now, or by which command it will be."""
    from sync_orchestrator.core.drain.workers import is_worked_off

    if is_worked_off(engine):
        print_line(f"{what}: a drain that runs pushes them")
    else:
        print_line(
            f"{what}, and nothing that pushes them runs: start `sync-orchestrator up`, or run `sync-orchestrator drain`"
        )
