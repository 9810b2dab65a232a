"""Bulk writes in a drain."""

from __future__ import annotations

from typing import Any

from bulk_store import BULK, TARGET, BulkStore
from bulk_store import http as http
from bulk_store import store as store
from fakes import two_part_config
from http_server import Server
from sqlalchemy import Engine
from starlette.responses import JSONResponse
from world import World

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.third_party import RestThirdParty
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.runtime import perform


def world_of(engine: Engine, server: Server, **changes: Any) -> World:
    bulk = {**BULK, "size": 50, "match": "key", "result_key": "key", **changes}
    settings = {**TARGET, "bulk_create": bulk, "bulk_update": bulk, "bulk_delete": bulk, "group": "store"}
    config = two_part_config(entity={"third_party": settings}, system={"concurrency": 4, "base_url": server.url})
    http = HttpClient(config.third_parties["erp"])
    return World(
        engine,
        config,
        erp=RestThirdParty(  # type: ignore[arg-type]
            http, config.entities["item"].third_party, tuple(config.entities["item"].mapping)
        ),
    )


def test_a_drain_fills_calls_beyond_its_connections_and_a_bad_record_holds_up_nobody(
    engine: Engine, server: Server, store: BulkStore
) -> None:
    world = world_of(engine, server)
    store.bad = {"k07"}
    for number in range(120):
        world.put_record(f"k{number:02}", notify=False)
        world.post_event("shop", f"k{number:02}", "create", world.shop.version, world.shop.rows[f"k{number:02}"].data)
    perform(world.context, drain(world.context, linger=0, most_seconds=60))
    assert len(store.items) == 119
    assert world.count_events_by_state() == {"done": 119, "dead": 1}
    assert max(len(call) for call in store.calls) == 50
    assert len(store.calls) < 20


def test_answers_that_are_lost_make_no_duplicates(engine: Engine, server: Server, store: BulkStore) -> None:
    world = world_of(engine, server)
    for number in range(20):
        world.put_record(f"k{number:02}")
    store.says = lambda results: JSONResponse({}, 500)
    perform(world.context, drain(world.context, linger=0, most_seconds=60))
    made = dict(store.items)
    assert len(made) == 20
    store.says = lambda results: JSONResponse({"results": results}, 207)
    for _ in range(3):
        world.advance_clock(300)
        perform(world.context, drain(world.context, linger=0, most_seconds=60))
    assert (sorted(store.items), world.count_events_by_state()) == (sorted(made), {"done": 40})
