"""Drains that relieve each other without a gap, and more of them where one does not keep up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from dagster_instance import Dagster
from dagster_instance import dagster as dagster
from dagster_instance import instance as instance
from dagster_instance import storage as storage
from dagster_instance import storage_url as storage_url
from fakes import two_part_config
from world import World

from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.drain.presence import Presence, at_work
from sync_orchestrator.core.systems.heartbeats import AtWork
from sync_orchestrator.sensors import changes

__all__ = ["dagster", "instance", "storage", "storage_url"]


def put_in_thread(world: World, number: int) -> Any:
    return asyncio.to_thread(world.put_record, f"k{number}")


async def until(check: Callable[[], bool]) -> None:
    def look() -> None:
        ends = time.monotonic() + 30
        while not check():
            assert time.monotonic() < ends
            time.sleep(0.01)

    await asyncio.to_thread(look)


async def feed(world: World, ended: asyncio.Event) -> int:
    """Changes without a pause; returns how many."""
    for number in count():
        if ended.is_set():
            return number
        await put_in_thread(world, number)
        await asyncio.sleep(0.01)
    raise AssertionError


async def test_a_drain_whose_time_is_over_goes_on_until_another_has_begun(world: World) -> None:
    ended = asyncio.Event()
    feeding = asyncio.create_task(feed(world, ended))
    old = asyncio.create_task(drain(world.context, linger=30, most_seconds=0.3, hand_over=60))
    await until(lambda: at_work(world.engine).leaving == 1)
    assert at_work(world.engine).staying == 0
    mirrored = len(world.erp.store)
    await until(lambda: len(world.erp.store) > mirrored + 5)  # it leaves, and works
    assert not old.done()
    new = asyncio.create_task(drain(world.context, linger=1, most_seconds=60))
    await asyncio.wait_for(old, 30)
    assert at_work(world.engine).staying == 1
    assert not new.done()
    ended.set()
    await feeding
    await asyncio.wait_for(new, 30)
    assert at_work(world.engine) == AtWork(0, 0, None)
    assert world.mirror_by_key() == world.expected_mirror()
    assert world.read_conservation().balanced


async def test_nobody_waits_for_a_successor_where_nothing_is_left_to_do(world: World) -> None:
    world.put_record("a")
    await asyncio.wait_for(drain(world.context, linger=60, most_seconds=0.2, hand_over=60), 20)
    assert world.mirror_by_key() == world.expected_mirror()


async def test_it_leaves_in_the_end_though_nobody_comes(world: World) -> None:
    ended = asyncio.Event()
    feeding = asyncio.create_task(feed(world, ended))
    await asyncio.wait_for(drain(world.context, linger=30, most_seconds=0.2, hand_over=0.5), 20)
    ended.set()
    await feeding


def test_drains_that_died_are_forgotten(world: World) -> None:
    for _ in range(3):
        Presence(world.engine).record_beat()
    world.advance_clock(11)
    assert at_work(world.engine) == AtWork(0, 0, None)
    world.advance_clock(3600)
    Presence(world.engine).announce_drain()
    assert [row.n for row in world.query("SELECT count(*) AS n FROM sync.heartbeats")] == [1]


def test_the_sensor_asks_for_the_successor_of_one_that_leaves_though_nothing_is_due(dagster: Dagster) -> None:
    leaving = Presence(dagster.world.engine)
    leaving.record_beat(leaving=True)
    assert len(dagster.tick(changes.change_events).run_requests) == 1
    Presence(dagster.world.engine).record_beat()
    assert "a drain is at work" in dagster.tick(changes.change_events).skip_message


def test_the_sensor_asks_for_more_only_where_those_at_work_do_not_keep_up(
    dagster: Dagster,
) -> None:
    allowed = replace(dagster.world.context, config=two_part_config(limits={"drains": 2}))
    dagster.context = allowed
    Presence(dagster.world.engine).record_beat()
    dagster.world.put_record("a")
    assert "a drain is at work" in dagster.tick(changes.change_events).skip_message
    dagster.world.advance_clock(5)
    assert len(dagster.tick(changes.change_events).run_requests) == 1
    Presence(dagster.world.engine).record_beat()
    assert "a drain is at work" in dagster.tick(changes.change_events).skip_message


async def test_looking_again_and_again_is_no_work_that_keeps_a_drain(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sync_orchestrator.core.drain.activity._MAX_WAIT_SECONDS", 0.05)
    world.put_record("a")
    await asyncio.wait_for(drain(world.context, linger=0.5, most_seconds=3600), 20)
    assert world.mirror_by_key() == world.expected_mirror()
