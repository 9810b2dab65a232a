"""Odd responses in a drain and a full sync: one request fails, and the outcome of a write is looked up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import two_part_config
from http_server import Server
from record_store import THEIRS, HttpWorld, Store
from sqlalchemy import Engine
from starlette.requests import Request as Incoming
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.factory import build_third_parties


def test_records_are_created_once_though_each_response_is_odd(engine: Engine, server: Server) -> None:
    """Each create is acknowledged: nothing is open, nothing was made twice."""
    store = Store(server)

    def odd(store: Store, item: dict[str, Any]) -> Response:
        response = Response(f'{{"id": "{item["id"]}"}}', 201)
        response.raw_headers += [(b"set-cookie", "sid=日本".encode()), (b"x-name", "日本".encode())]
        return response

    store.says = odd
    world = world_over_http(engine, server)
    for number in range(4):
        world.put_record(f"k{number}")
    world.run_drain()
    assert store.calls["POST items"] == 4
    assert sorted(item["code"] for item in store.items.values()) == ["k0", "k1", "k2", "k3"]
    assert world.count_events_by_state() == {"done": 8}
    world.close()


ODD = ["a\x00b", "\ud800", "a\udfffb"]


def odd_answer(status: int, **fields: Any) -> Response:
    """JSON with characters that the database cannot hold, escaped as JSON has it."""
    return Response(json.dumps(fields), status, media_type="application/json")


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("status", [200, 201, 400, 409, 500])
def test_a_response_that_cannot_be_stored_fails_its_own_record_only(
    engine: Engine, server: Server, odd: str, status: int
) -> None:
    """In the text of an error, in an id, in a name of the record: the drain goes on, and all else is in sync."""
    store = Store(server)

    def say(store: Store, item: dict[str, Any]) -> Response:
        if item["code"] != "k1":
            return JSONResponse(item)
        if status == 400:  # which says that nothing was done
            del store.items[item["id"]]
        return odd_answer(status, id=odd, error=odd, code=odd, name=odd)

    store.says = say
    world = world_over_http(engine, server)
    for number in range(3):
        world.put_record(f"k{number}")
    world.run_drain()
    assert [world.read_record_row(key).out_of_sync for key in ("k0", "k2")] == [False, False]
    assert len(store.of("k1")) == (status != 400)
    world.close()


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("field", ["id", "code", "name", "store"])
def test_a_record_of_others_that_cannot_be_stored_stops_no_validation(
    engine: Engine, server: Server, odd: str, field: str
) -> None:
    store = Store(server)
    world = world_over_http(engine, server)
    world.put_record("k1")
    world.run_full_sync()
    store.items["x9"] = {"id": "x9", "code": "other", "name": "n", "store": "A", "count": 1, field: odd}
    if field == "name":
        store.items[store.of("k1")[0]]["name"] = odd
    store.shown = lambda item: odd_answer(200, **item)

    def list_odd(request: Incoming) -> Response:
        asked = request.query_params
        found = [
            item
            for item in store.items.values()
            if asked.get("store", "A") == "A" and asked.get("code", item["code"]) == item["code"]
        ]
        return Response(json.dumps(found), media_type="application/json")

    store._list = list_odd  # type: ignore[method-assign]
    result = world.run_validation(full=True)
    if field == "name":
        assert [(drift.key, drift.kind) for drift in result.drift if drift.kind == "different"] == [("k1", "different")]
    assert result.verdict == ("drift" if field == "name" else "in_sync"), result.reason
    world.close()


def world_over_http(engine: Engine, server: Server) -> HttpWorld:
    config = two_part_config(entity={"third_party": THEIRS, "validation": {"confirm_after": 0}})
    third_party = build_third_parties(
        two_part_config(system={"base_url": server.url}, entity={"third_party": THEIRS}), {}
    )["item"]
    return HttpWorld(engine, config, erp=third_party)  # type: ignore[arg-type]
