"""Thin events of a batch are read together: the calls that it takes, and records that cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeSource, two_part_config
from http_server import Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sql_sources import part
from sqlalchemy import Engine, create_engine, event
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from world import World

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.source import RestSource
from sync_orchestrator.adapters.sql import database
from sync_orchestrator.adapters.sql.engines import create_database_engine
from sync_orchestrator.adapters.sql.source import SqlSource
from sync_orchestrator.config import HttpSettings, PartSettings
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.errors import CallFailed, Failure

pytestmark = pytest.mark.slow

EVENTS = 500


class TogetherSource(FakeSource):
    """A source that reads a hundred records in one call."""

    read_many_size = 100

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, ...]] = []
        self.poisoned: set[str] = set()
        self.serves: Callable[[], bool] = lambda: True

    async def read(self, key: str) -> PartRead | None:
        return next(iter(await self.read_many([key])), None)

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        self.calls.append(tuple(keys))
        if not self.serves() or self.poisoned.intersection(keys):
            raise CallFailed(Failure.TRANSIENT, "the source does not answer")
        return await super().read_many(keys)


@pytest.fixture
def world(engine: Engine) -> Iterator[World]:
    world = World(engine, two_part_config(), shop=TogetherSource())
    yield world
    world.close()


@pytest.fixture
def shop(world: World) -> TogetherSource:
    assert isinstance(world.shop, TogetherSource)
    return world.shop


def put_and_notify(world: World, number: int) -> None:
    """Writes records in both sources and notifies of the owner's parts by their keys alone."""
    for at in range(number):
        world.put_record(f"k{at:03}", notify=False)
        world.post_event("stock", f"k{at:03}", "create", 2_000_000, {"count": 1})
    for key, row in world.shop.rows.items():
        world.post_event("shop", key, "create", row.version)


def test_thin_events_of_a_batch_cost_a_query_for_each_hundred(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"sqlite:///{tmp_path / 'shop.db'}"
    statements: list[str] = []

    def create_watched_engine(*given: Any, **more: Any) -> Engine:
        made = create_database_engine(*given, **more)
        event.listen(made, "before_cursor_execute", lambda *of_call: statements.append(of_call[2]))
        return made

    monkeypatch.setattr(database, "create_database_engine", create_watched_engine)
    engine = create_engine(address)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE items (sku TEXT PRIMARY KEY, store TEXT, v INTEGER, name TEXT)")
        rows = [(f"k{at:03}", "A", 1, f"n{at}") for at in range(EVENTS)]
        connection.exec_driver_sql("INSERT INTO items VALUES (?, ?, ?, ?)", rows)
    engine.dispose()
    told = SqlSourceSettings.model_validate({"kind": "sql", "url": address})
    source = SqlSource(database.SourceDatabase("shop", told), part())
    world.context.entities["item"].sources["shop"] = source
    for at in range(EVENTS):
        world.post_event("stock", f"k{at:03}", "create", 1, {"count": at})
    world.run_drain()
    asyncio.run(source.read("k000"))  # it finds out the types of the columns, which is kept
    statements.clear()
    for at in range(EVENTS):
        world.post_event("shop", f"k{at:03}", "create", 1)
    world.run_drain()
    asyncio.run(source.close())
    assert {key: record["name"] for key, record in world.mirror_by_key().items()} == {
        f"k{at:03}": f"n{at}" for at in range(EVENTS)
    }
    assert len(statements) <= 2 * EVENTS / 100, "a batch may be divided between the two tasks of the drain"


def test_thin_events_of_a_batch_cost_a_call_for_each_hundred(world: World, server: Server) -> None:
    async def show_rows(request: Request) -> Response:
        keys = request.query_params["skus"].split(",")
        return JSONResponse([{"sku": key, "store": "A", "v": 1, "name": f"n {key}"} for key in keys])

    server.handler = show_rows
    settings = {"key": "sku", "version": {"path": "v", "kind": "number"}, "group": "store", "list": {"path": "/"}}
    some = {"path": "/items", "params": {"skus": "{{ keys | join(',') }}"}}
    http = HttpClient(HttpSettings(base_url=server.url, timeout=10))
    source = RestSource(http, PartSettings.model_validate({**settings, "read_many": some}))
    world.context.entities["item"].sources["shop"] = source
    for at in range(EVENTS):
        world.post_event("stock", f"k{at:03}", "create", 1, {"count": at})
        world.post_event("shop", f"k{at:03}", "create", 1)

    async def drain_and_close() -> None:
        await drain(world.context, linger=0, most_seconds=60)
        await source.close()

    asyncio.run(drain_and_close())
    assert len(world.mirror_by_key()) == EVENTS
    assert EVENTS / 100 <= len(server.seen) <= 3 * EVENTS / 100


def test_ties_of_a_batch_are_read_together(world: World, shop: TogetherSource) -> None:
    for at in range(50):
        world.put_record(f"k{at:03}", name="right", notify=False)
        world.post_event("stock", f"k{at:03}", "create", 2_000_000, {"count": 1})
        for name in ("wrong", "right"):
            world.post_event("shop", f"k{at:03}", "create", shop.rows[f"k{at:03}"].version, {"name": name})
    world.run_drain()
    assert {record["name"] for record in world.mirror_by_key().values()} == {"right"}
    assert len(shop.calls) <= 2


def test_a_poisoned_record_waits_alone(world: World, shop: TogetherSource) -> None:
    shop.poisoned = {"k007"}
    put_and_notify(world, 120)
    world.run_drain()
    assert set(world.mirror_by_key()) == set(shop.rows) - {"k007"}
    [waiting] = world.query("SELECT key, state, attempts, awaiting FROM sync.events WHERE source = 'shop'")
    assert (waiting.key, waiting.state, waiting.attempts, waiting.awaiting) == ("k007", "waiting", 0, "source")
    shop.poisoned = set()
    world.advance_clock(11)
    world.run_drain()
    assert set(world.mirror_by_key()) == set(shop.rows)


def test_absent_records_wait_and_confirm_deletions_as_when_read_alone(world: World, shop: TogetherSource) -> None:
    put_and_notify(world, 20)
    world.run_drain()
    for key in ("k003", "k004"):
        world.post_event("shop", key, "delete", shop.remove(key))
    world.post_event("shop", "k900", "create", shop.version)
    world.run_drain()
    assert set(world.mirror_by_key()) == set(shop.rows)
    [waiting] = world.query("SELECT key, state, attempts, absent_at IS NOT NULL AS absent FROM sync.events")
    assert (waiting.key, waiting.state, waiting.attempts, waiting.absent) == ("k900", "waiting", 0, True)


def test_a_source_that_goes_down_in_between_costs_no_attempt_and_few_calls(world: World, shop: TogetherSource) -> None:
    shop.serves = lambda: len(shop.calls) <= 1
    put_and_notify(world, 400)
    world.run_drain()
    assert len(world.mirror_by_key()) == 100
    assert len(shop.calls) <= 4 + 8 * 8
    states = world.query("SELECT DISTINCT state, attempts FROM sync.events WHERE source = 'shop'")
    assert [(row.state, row.attempts) for row in states] == [("waiting", 0)]
    shop.serves = lambda: True
    world.advance_clock(11)
    world.run_drain()
    assert set(world.mirror_by_key()) == set(shop.rows)
    assert set(world.count_events_by_state()) <= {"done", "superseded"}


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d", "e", "f"]),
        st.sampled_from(["put", "remove", "create", "update", "delete"]),
    ),
    min_size=1,
    max_size=30,
)


@pytest.mark.timeout(600)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=MOVES, poisoned=st.sets(st.sampled_from("abcdef"), max_size=2))
def test_batches_end_like_single_reads(engine: Engine, moves: list[tuple[str, str]], poisoned: set[str]) -> None:
    """The same writes and thin notifications, in batches and one by one: the same archive, ledger and mirror."""
    assert _play(engine, 4, moves, poisoned) == _play(engine, 1, moves, poisoned)


TABLES = ("events", "event_ids", "event_history", "records", "parts", "push_attempts", "tallies", "alerts")


def _play(engine: Engine, size: int, moves: list[tuple[str, str]], poisoned: set[str]) -> object:
    with engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE " + ", ".join(f"sync.{table}" for table in TABLES) + " CASCADE")
    shop = TogetherSource()
    shop.read_many_size, shop.poisoned = size, poisoned
    world = World(engine, two_part_config(), shop=shop)
    try:
        for number, (key, move) in enumerate(moves):
            if move == "put":
                world.put_record(key, name=f"n{number}", notify=False)
                world.post_event("stock", key, "update", world.stock.rows[key].version, world.stock.rows[key].data)
            elif move == "remove":
                shop.remove(key)
            else:
                world.post_event("shop", key, move, shop.version)  # type: ignore[arg-type]
        for _ in range(2):
            world.run_drain()
            world.advance_clock(11)
        records = world.query("SELECT key, deleted, group_key FROM sync.records ORDER BY key")
        parts = world.query("SELECT key, part, version, data FROM sync.parts ORDER BY key, part")
        events = world.query("SELECT key, source, state, attempts, awaiting FROM sync.events ORDER BY seq")
        return (
            [tuple(row) for row in (*records, *parts, *events)],
            world.count_events_by_state(),
            sorted(world.mirror_by_key().items()),
        )
    finally:
        world.close()
