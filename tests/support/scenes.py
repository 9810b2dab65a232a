"""What many tests do in a world: fill groups, sync them, alter a copy, look at plans and alerts."""

from __future__ import annotations

import asyncio
from typing import Any

from world import World

from sync_orchestrator.config import Alerts
from sync_orchestrator.core.full_sync.plan import GroupPlan, plan_group
from sync_orchestrator.core.operations.maintenance import watch
from sync_orchestrator.core.validation.source_check import SourceCheck, check_sources


def fill(world: World, count: int, group: str = "A", prefix: str = "k") -> None:
    for number in range(count):
        world.put(f"{prefix}{number:03}", count=number, group=group, tell=False)


def planned(world: World, group: str = "A", **options: Any) -> GroupPlan:
    return asyncio.run(plan_group(world.context, world.entity, group, **options))


def id_of(world: World, key: str) -> str:
    return next(name for name, record in world.erp.store.items() if record["code"] == key)


def alter(world: World, key: str, **fields: Any) -> None:
    world.erp.store[id_of(world, key)].update(fields)


def synced_a_second_ago(world: World, count: int = 5) -> World:
    fill(world, count)
    world.full_sync()
    world.later(1)
    return world


def watched(world: World) -> list[tuple[str, int]]:
    """The minute's round, and the alerts that are open after it."""
    with world.engine.begin() as connection:
        watch(connection, Alerts())
    return [
        (row.kind, row.n)
        for row in world.query("SELECT kind, n FROM sync.alerts WHERE resolved_at IS NULL ORDER BY cause")
    ]


def checked_sources(world: World, group: str = "A") -> SourceCheck:
    return asyncio.run(check_sources(world.context, world.entity, group))


def open_alerts(world: World) -> list[tuple[str, str]]:
    return [
        (row.kind, row.cause)
        for row in world.query("SELECT kind, cause FROM sync.alerts WHERE resolved_at IS NULL ORDER BY kind, cause")
    ]


def synced(world: World, count: int = 4, group: str = "A", prefix: str = "k") -> World:
    fill(world, count, group, prefix)
    world.full_sync(group, patience=30)
    return world
