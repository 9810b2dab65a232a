"""A slow third party gets fewer calls at once and smaller batches, and what was lost is not read back one by one."""

from __future__ import annotations

import time

from lost_batches import FULL, LOST
from sqlalchemy import Engine
from world import World

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.operations.status import collect_status
from sync_orchestrator.core.systems.call_limit import (
    SharedCallLimit,
)
from sync_orchestrator.core.systems.overview import describe_call_limit
from sync_orchestrator.core.systems.pauses import set_paused

# The rule.


# Calls.


# Shared.


def shared(engine: Engine) -> SharedCallLimit:
    return SharedCallLimit(engine, "erp", 32, 2.0)


async def test_all_processes_obey_a_limit_that_one_of_them_lowered_and_status_says_why(world: World) -> None:
    one, other = shared(world.engine), shared(world.engine)
    one._apply_limit(FULL)
    await one.note_loss(time.monotonic(), LOST)
    await other.refresh_limit()
    assert (one.calls, other.calls) == (16, 16)
    limit = collect_status(world.engine)["systems"]["erp"]["call_limit"]
    assert (limit["calls_at_once"], limit["configured"], limit["reason"]) == (16, 32, LOST)
    assert "16 of 32 calls at once" in describe_call_limit("erp", limit)
    assert LOST in describe_call_limit("erp", limit)


async def test_calls_that_were_under_way_together_are_one_loss_over_all_processes(world: World) -> None:
    one, other = shared(world.engine), shared(world.engine)
    one._apply_limit(FULL)
    other._apply_limit(FULL)
    began = time.monotonic()
    await one.note_loss(began, LOST)
    await other.note_loss(began, LOST)
    assert (one.calls, other.calls) == (16, 16)


async def test_a_limit_that_was_not_lowered_for_an_hour_is_over(world: World) -> None:
    one = shared(world.engine)
    await one.note_loss(time.monotonic(), LOST)
    with world.engine.begin() as connection:
        run(connection, "UPDATE sync.systems SET calls_lost_at = clock_timestamp() - interval '2 hours'")
    other = shared(world.engine)
    await other.refresh_limit()
    assert other.calls == 32
    assert collect_status(world.engine)["systems"]["erp"]["call_limit"] is None


async def test_resume_ends_a_limit(world: World) -> None:
    one = shared(world.engine)
    await one.note_loss(time.monotonic(), LOST)
    set_paused(world.engine, "erp", set(), paused=False)
    assert collect_status(world.engine)["systems"]["erp"]["call_limit"] is None


# What was lost.
