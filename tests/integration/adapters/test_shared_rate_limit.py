"""The rate that all runs share: it gives way where calls are refused for coming too fast, and grows back."""

from __future__ import annotations

import asyncio

import pytest
from http_server import Server
from world import World

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import ReadCallSettings
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.core.systems.rate_limit import SharedHoldOff
from sync_orchestrator.errors import CallFailed


def step(world: World) -> float:
    """Seconds from one call to the next, of a rate of 100 a second."""
    return float(world.query(systems_queries.RESERVE_CALL, name="erp", n=1, step=0.01)[0].step)


def ago(world: World, seconds: float) -> None:
    """As if the last refusal had been so long ago."""
    world.query(
        "UPDATE sync.systems SET rate_share_at = rate_share_at - make_interval(secs => %(seconds)s) "
        "WHERE name = 'erp' RETURNING name",
        seconds=seconds,
    )


def refused(world: World) -> None:
    asyncio.run(SharedHoldOff(world.engine, "erp").note_refused())


def test_a_refusal_makes_all_runs_slower_and_many_at_once_are_one(world: World) -> None:
    assert step(world) == pytest.approx(0.01)
    for _ in range(5):
        refused(world)
    assert step(world) == pytest.approx(0.01 / 0.7, rel=0.02)


def test_the_rate_grows_back(world: World) -> None:
    refused(world)
    ago(world, 10)
    assert step(world) == pytest.approx(0.01 / 0.9, rel=0.02)
    ago(world, 100)
    assert step(world) == pytest.approx(0.01)


def test_it_never_comes_to_a_stop(world: World) -> None:
    for _ in range(30):
        refused(world)
        ago(world, 1.1)
    assert 0.1 < step(world) < 0.01 / 0.05


def test_any_429_is_a_refusal(world: World, server: Server) -> None:
    server.respond_with({}, 429)

    async def call() -> None:
        http = HttpClient(HttpSettings(base_url=server.url), hold_off=SharedHoldOff(world.engine, "erp"))
        with pytest.raises(CallFailed):
            await http.read(ReadCallSettings(path="/"), {})
        await http.close()

    asyncio.run(call())
    assert step(world) == pytest.approx(0.01 / 0.7, rel=0.02)
