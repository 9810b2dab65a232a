"""What many tests do in a world: fill groups, sync them, alter a copy, look at plans and alerts."""

from __future__ import annotations

import asyncio
from typing import Any

from world import World

from sync_orchestrator.config import AlertSettings
from sync_orchestrator.core.full_sync.plan import GroupPlan, plan_group
from sync_orchestrator.core.operations.maintenance import watch_backlog
from sync_orchestrator.core.validation.source_check import SourceCheckResult, check_sources


def fill_sources(world: World, count: int, group: str = "A", prefix: str = "k") -> None:
    for number in range(count):
        world.put_record(f"{prefix}{number:03}", count=number, group=group, notify=False)


def plan_full_sync(world: World, group: str = "A", **options: Any) -> GroupPlan:
    return asyncio.run(plan_group(world.context, world.entity, group, **options))


def find_external_id(world: World, key: str) -> str:
    return next(name for name, record in world.erp.store.items() if record["code"] == key)


def alter_copy(world: World, key: str, **fields: Any) -> None:
    world.erp.store[find_external_id(world, key)].update(fields)


def sync_and_wait_a_second(world: World, count: int = 5) -> World:
    fill_sources(world, count)
    world.run_full_sync()
    world.advance_clock(1)
    return world


def watch_for_alerts(world: World) -> list[tuple[str, int]]:
    """The minute's round, and the alerts that are open after it."""
    with world.engine.begin() as connection:
        watch_backlog(connection, AlertSettings())
    return [
        (row.kind, row.n)
        for row in world.query("SELECT kind, n FROM sync.alerts WHERE resolved_at IS NULL ORDER BY cause")
    ]


def check_group_sources(world: World, group: str = "A") -> SourceCheckResult:
    return asyncio.run(check_sources(world.context, world.entity, group))


def list_open_alerts(world: World) -> list[tuple[str, str]]:
    return [
        (row.kind, row.cause)
        for row in world.query("SELECT kind, cause FROM sync.alerts WHERE resolved_at IS NULL ORDER BY kind, cause")
    ]


def sync_new_records(world: World, count: int = 4, group: str = "A", prefix: str = "k") -> World:
    fill_sources(world, count, group, prefix)
    world.run_full_sync(group, patience=30)
    return world
