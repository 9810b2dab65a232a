"""A wait that a system asks for is kept by all runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from http_server import Server, failure_of
from sqlalchemy import Engine, text
from starlette.responses import JSONResponse
from throttling_servers import CONFIG, READ, Slept, answering, client
from throttling_servers import slept as slept

from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.core.systems.breaker import check_gate
from sync_orchestrator.core.systems.rate_limit import SharedHoldOff
from sync_orchestrator.errors import Failure


@pytest.fixture
def machine(engine: Engine, database_url: str) -> Any:
    """Makes hold-offs that share nothing but the database."""
    with engine.begin() as connection:
        run(connection, systems_queries.REGISTER_SYSTEM, name="erp")
    engines: list[Engine] = []

    def make() -> SharedHoldOff:
        engines.append(open_engine(database_url))
        return SharedHoldOff(engines[-1], "erp")

    yield make
    for each in engines:
        each.dispose()


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        pytest.param(200, {}, {"backoff": 40}, id="Backoff on good answers"),
        pytest.param(429, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "40"}, {}, id="X-RateLimit"),
        pytest.param(429, {"Retry-After": "40"}, {}, id="Retry-After of a 429"),
        pytest.param(503, {"Retry-After": "40"}, {}, id="Retry-After of a 503"),
    ],
)
async def test_all_machines_are_held_off(
    server: Server,
    machine: Callable[[], SharedHoldOff],
    engine: Engine,
    status: int,
    headers: dict[str, str],
    body: Any,
) -> None:
    one, other = (client(server, machine(), throttle={"slow_down": "body.backoff"}) for _ in range(2))
    answering(server, JSONResponse(body, status, headers=headers))
    if status == 200:
        await one.read(READ, {})
    else:
        assert (await failure_of(one.read(READ, {}))).retry_after == 40
    failure = await failure_of(other.read(READ, {}))
    assert failure.kind is Failure.THROTTLED
    assert failure.retry_after == pytest.approx(40, abs=5)
    assert len(server.seen) == 1
    with engine.begin() as connection:
        state = check_gate(connection, "erp", CONFIG.third_parties["erp"])
    assert state.wait == pytest.approx(40, abs=5)
    await one.close()
    await other.close()


async def test_machines_that_are_at_work_learn_of_it_within_a_second(
    machine: Callable[[], SharedHoldOff], slept: Slept
) -> None:
    one, other = machine(), machine()
    assert await other.seconds_left() <= 0
    await one.hold_off_calls(40)
    await asyncio.sleep(1)
    assert await other.seconds_left() == pytest.approx(40, abs=5)


async def test_a_hold_off_ends(machine: Callable[[], SharedHoldOff], engine: Engine, slept: Slept) -> None:
    one = machine()
    await one.hold_off_calls(40)
    with engine.begin() as connection:
        connection.execute(text("UPDATE sync.systems SET not_before = now() - interval '1 s'"))
    await asyncio.sleep(1)
    assert await one.seconds_left() <= 0
