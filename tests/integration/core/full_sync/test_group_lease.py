"""A full sync that ended without a word gives up its business group within seconds."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from paths import ROOT, SUPPORT
from sqlalchemy import Connection, Engine
from world import World

from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.groups import lease as group_lease
from sync_orchestrator.core.groups.lease import GROUP_LEASE_SECONDS, lease_group
from sync_orchestrator.errors import GroupBusy

TAKE = (
    "INSERT INTO sync.groups (entity, group_key, lease_token, lease_until, lease_holder, lease_taken_at) VALUES "
    "('item', 'A', 1000, sync.clock() + make_interval(secs => %(left)s), 'full-sync 77 on far', "
    "sync.clock() - interval '42 s')"
)

WORKER = """
import asyncio, sys
from fakes import FakeSource, FakeThirdParty, two_part_config
from sync_orchestrator.composition import build_context
from sync_orchestrator.core.groups.lease import lease_group
from sync_orchestrator.core.db.session import open_engine
from sync_orchestrator.core.runtime import perform

sources = {"item": {"shop": FakeSource(), "stock": FakeSource()}}
context = build_context(open_engine(sys.argv[1]), two_part_config(), sources, {"item": FakeThirdParty()})

async def hold():
    async with lease_group(context, "item", "A"):
        print("held", flush=True)
        await asyncio.sleep(60)

perform(context, hold())
"""


def held_by_a_process(database_url: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, database_url],
        stdout=subprocess.PIPE,
        text=True,
        cwd=SUPPORT,
        env={**os.environ, "PYTHONPATH": f"{SUPPORT}:{ROOT}"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


async def test_the_lease_of_a_process_that_is_gone_is_taken_over_when_its_heartbeat_is_old(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_lease, "_LOOK_SECONDS", 0.05)
    world.query(TAKE, left=0.3)
    began = time.monotonic()
    async with lease_group(world.context, "item", "A") as lease:
        assert 0.2 < time.monotonic() - began < 5
        assert lease.token != 1000


async def test_the_group_of_a_process_that_lives_is_busy_and_the_message_says_whose_it_is_and_until_when(
    world: World,
) -> None:
    world.query(TAKE, left=60)
    with pytest.raises(GroupBusy) as caught:
        async with lease_group(world.context, "item", "A"):
            raise AssertionError
    said = str(caught.value)
    assert "full-sync 77 on far holds the group for 42 s" in said
    assert "60 s from now" in said
    assert "UTC" in said


async def test_a_lease_is_renewed_for_as_long_as_it_is_held(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_lease, "GROUP_LEASE_SECONDS", 0.4)
    async with lease_group(world.context, "item", "A"):
        with pytest.raises(GroupBusy, match="is under way"):
            async with lease_group(world.context, "item", "A"):
                raise AssertionError


async def test_a_group_that_was_taken_while_the_work_was_canceled_is_given_back(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taking, canceled, taken = threading.Event(), threading.Event(), threading.Event()
    run_transaction = in_transaction

    def slow(engine: Engine, work: Callable[[Connection], Any]) -> Any:
        taking.set()
        assert canceled.wait(30)
        done = run_transaction(engine, work)
        taken.set()
        return done

    async def full_sync() -> None:
        async with lease_group(world.context, "item", "A"):
            raise AssertionError

    monkeypatch.setattr(group_lease, "in_transaction", slow)
    task = asyncio.create_task(full_sync())
    assert await asyncio.to_thread(taking.wait, 30)
    task.cancel()
    canceled.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(taken.wait, 30)
    assert not world.query("SELECT FROM sync.groups WHERE lease_until IS NOT NULL")


def test_a_lease_is_short_however_long_claimed_work_belongs_to_a_drain(world: World) -> None:
    assert group_lease.lease_seconds(world.context) == GROUP_LEASE_SECONDS < 15 < world.config.limits.lease


@pytest.mark.slow
def test_sigterm_gives_the_business_group_back_at_once(world: World, database_url: str) -> None:
    process = held_by_a_process(database_url)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert world.query("SELECT lease_until, lease_holder FROM sync.groups") == [(None, None)]


@pytest.mark.long
async def test_after_sigkill_another_process_has_the_group_within_15_seconds(world: World, database_url: str) -> None:
    process = held_by_a_process(database_url)
    process.kill()
    process.communicate()
    began = time.monotonic()
    async with lease_group(world.context, "item", "A"):
        assert time.monotonic() - began < 15
