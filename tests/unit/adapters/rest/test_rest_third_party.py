"""A third party over HTTP: addresses, ids, what is found there, and the endings that must not be taken for success."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from http_server import AWKWARD, Server, failure_of
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.factory import build_sources, build_third_parties
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.third_party import RestThirdParty
from sync_orchestrator.config import Config, TargetSettings
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.core.ports import Capabilities, Found, Item
from sync_orchestrator.errors import Failure

ITEM = Item("k1", "A", {"code": "k1", "name": "n"}, external_id="X1", idempotency_key="thing/k1/A")
RECORD = {"id": "X1", "code": "k1", "name": "n", "store": "A", "touched": 5}
FOUND = Found("k1", "X1", "A", {"code": "k1", "name": "n", "note": None})
TARGET: dict[str, Any] = {
    "system": "erp",
    "key_field": "code",
    "group": "store",
    "record": "data",
    "create": {"method": "POST", "path": "/items", "body": {"item": "{{ payload }}"}},
    "update": {"method": "PUT", "path": "/items/{{ id }}", "body": {"item": "{{ payload }}"}},
    "delete": {"method": "DELETE", "path": "/items/{{ id }}"},
    "read": {"path": "/items/{{ id }}", "record": "data"},
    "lookup": {"path": "/items", "params": {"code": "{{ key }}"}, "items": "items"},
    "list": {
        "path": "/items",
        "params": {"store": "{{ group }}", "c": "{{ cursor }}"},
        "items": "items",
        "paging": "cursor",
        "next": "next",
    },
    "count": {"path": "/count/{{ group }}", "number": "total"},
    "filter_check": {"off": True},
}
OURS: dict[str, Any] = {
    "ids": "ours",
    "create": None,
    "lookup": None,
    "update": {"method": "PUT", "path": "/stores/{{ group }}/items/{{ key }}"},
    "delete": {"method": "DELETE", "path": "/stores/{{ group }}/items/{{ id }}"},
}


class Heard:
    """Answers every call with the same, and keeps headers and bodies."""

    def __init__(self, server: Server, content: Any = None, status: int = 200) -> None:
        self.headers: list[dict[str, str]] = []
        self.bodies: list[Any] = []
        self._content, self._status = content, status
        server.handler = self._handle

    async def _handle(self, request: Request) -> Response:
        body = await request.body()
        self.headers.append(dict(request.headers))
        self.bodies.append(json.loads(body) if body else None)
        return Response(status_code=204) if self._status == 204 else JSONResponse(self._content, self._status)


def third_party(server: Server, **changes: Any) -> RestThirdParty:
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    return RestThirdParty(client, TargetSettings.model_validate({**TARGET, **changes}), ("code", "name", "note"))


# What it can do.


@pytest.mark.parametrize(
    ("changes", "capabilities"),
    [
        ({}, Capabilities(assigns_ids=True, can_lookup=True, idempotent_create=False, group_in_address=False)),
        ({"idempotency": {}}, Capabilities(True, True, True, False)),
        ({"lookup": None}, Capabilities(True, False, False, False)),
        ({"delete": {"method": "DELETE", "path": "/{{ group }}/{{ id }}"}}, Capabilities(True, True, False, True)),
        (OURS, Capabilities(False, False, False, True)),
    ],
)
def test_capabilities(server: Server, changes: dict[str, Any], capabilities: Capabilities) -> None:
    sends_group = "group" in str(changes.get("update"))
    assert third_party(server, **changes).capabilities == replace(
        capabilities, sends_group=sends_group, shows_group=True
    )


# Creating.


async def test_create(server: Server) -> None:
    """The payload goes wrapped, the id comes back as text."""
    heard = Heard(server, {"data": {"id": 17}}, 201)
    erp = third_party(server)
    assert await erp.create(ITEM) == "17"
    assert server.seen == [("POST", "/items", {})]
    assert heard.bodies == [{"item": {"code": "k1", "name": "n"}}]
    await erp.close()


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (204, None),
        (200, {}),
        (200, {"data": {}}),
        (200, {"data": {"id": None}}),
        (200, {"data": "x"}),
        (200, []),
    ],
)
async def test_a_create_without_an_id_may_have_happened(server: Server, status: int, content: Any) -> None:
    Heard(server, content, status)
    erp = third_party(server)
    failure = await failure_of(erp.create(ITEM))
    assert (failure.kind, failure.unknown) == (Failure.TRANSIENT, True)
    await erp.close()


async def test_an_id_that_cannot_be_computed_may_belong_to_a_create(server: Server) -> None:
    """An expression that fails on the answer must not hide that the create was carried out."""
    Heard(server, {"data": {"id": 5}})
    erp = third_party(server, id="starts_with(id, 'x')")
    assert (await failure_of(erp.create(ITEM))).unknown
    await erp.close()


async def test_writes_are_sent_once(server: Server) -> None:
    Heard(server, {}, 500)
    erp = third_party(server)
    assert (await failure_of(erp.create(ITEM))).unknown
    assert len(server.seen) == 1
    await erp.close()


async def test_a_conflict_stays_one(server: Server) -> None:
    Heard(server, {"fault": "exists"}, 409)
    erp = third_party(server)
    failure = await failure_of(erp.create(ITEM))
    assert (failure.kind, failure.may_be_duplicate) == (Failure.PERMANENT, True)
    await erp.close()


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_the_idempotency_key_is_the_creates_alone(server: Server, method: str) -> None:
    """An update by POST under the create's key would be answered from memory, and lost."""
    heard = Heard(server, {"data": {"id": "X1"}})
    erp = third_party(
        server,
        idempotency={},
        create={"method": method, "path": "/items"},
        update={"method": "POST", "path": "/items/{{ id }}"},
    )
    await erp.create(ITEM)
    await erp.update(ITEM)
    assert [headers.get("idempotency-key") for headers in heard.headers] == ["thing/k1/A", None]
    await erp.close()


@pytest.mark.parametrize("key", ["é中", "a\nb", "a b"])
async def test_an_idempotency_key_of_any_text(server: Server, key: str) -> None:
    heard = Heard(server, {"data": {"id": "X1"}})
    erp = third_party(server, idempotency={})
    await erp.create(replace(ITEM, idempotency_key=key))
    assert heard.headers[0]["idempotency-key"].isascii()
    await erp.close()


# Our ids.


async def test_with_our_ids_a_create_is_the_update(server: Server) -> None:
    heard = Heard(server, status=204)
    erp = third_party(server, **OURS)
    assert await erp.create(replace(ITEM, external_id=None)) == "k1"
    assert server.seen == [("PUT", "/stores/A/items/k1", {})]
    assert heard.bodies == [ITEM.payload]
    await erp.delete(ITEM)
    assert server.seen[-1] == ("DELETE", "/stores/A/items/k1", {})
    await erp.close()


async def test_a_404_makes_no_record(server: Server) -> None:
    """With our ids, too, a create that found nothing to write to has failed."""
    erp = third_party(server, **OURS)
    assert (await failure_of(erp.create(ITEM))).about_system
    assert await erp.update(ITEM) is None
    await erp.close()


# Updating, deleting, reading.


@pytest.mark.parametrize(("status", "expected"), [(200, "X1"), (204, "X1"), (404, None), (410, None)])
async def test_update(server: Server, status: int, expected: str | None) -> None:
    Heard(server, {"data": {"id": "X1"}}, status)
    erp = third_party(server)
    assert await erp.update(ITEM) == expected
    await erp.close()


@pytest.mark.parametrize("status", [200, 204, 404, 410])
async def test_delete(server: Server, status: int) -> None:
    """It sends no body; what is gone already is deleted."""
    heard = Heard(server, {}, status)
    erp = third_party(server)
    await erp.delete(ITEM)
    assert (server.seen, heard.bodies) == ([("DELETE", "/items/X1", {})], [None])
    await erp.close()


@pytest.mark.parametrize("external_id", [None, "", ".", ".."])
async def test_no_id_addresses_the_whole_collection(server: Server, external_id: str | None) -> None:
    erp = third_party(server)
    item = replace(ITEM, external_id=external_id)
    for call in (erp.update(item), erp.delete(item), erp.read(item)):
        assert (await failure_of(call)).kind is Failure.PERMANENT
    assert server.seen == []
    await erp.close()


@pytest.mark.parametrize("key", AWKWARD)
async def test_awkward_ids_stay_one_piece_of_the_path(server: Server, key: str) -> None:
    Heard(server, status=204)
    erp = third_party(server)
    await erp.delete(replace(ITEM, external_id=key))
    assert server.seen[0][1].count("/") == 2
    await erp.close()


async def test_read(server: Server) -> None:
    """Only the mapped fields, each of them."""
    Heard(server, {"data": RECORD})
    erp = third_party(server)
    assert await erp.read(ITEM) == FOUND
    await erp.close()


@pytest.mark.parametrize(("status", "content"), [(404, {}), (410, {}), (200, {"data": None}), (200, {"data": []})])
async def test_read_of_what_is_not_there(server: Server, status: int, content: Any) -> None:
    Heard(server, content, status)
    erp = third_party(server)
    assert await erp.read(ITEM) is None
    await erp.close()


@pytest.mark.parametrize("content", [{"fault": "later"}, {"data": ["x"]}, {"data": {"code": "k1"}}])
async def test_another_shape_is_no_missing_record(server: Server, content: Any) -> None:
    """Taken for one it would be created again."""
    Heard(server, content)
    erp = third_party(server)
    assert (await failure_of(erp.read(ITEM))).kind is Failure.TRANSIENT
    await erp.close()


# Finding and listing.


async def test_lookup_finds_duplicates_and_nothing_else(server: Server) -> None:
    """A search that matches loosely brings others too."""
    Heard(server, {"items": [RECORD, {**RECORD, "id": "X2"}, {**RECORD, "id": "X3", "code": "k10"}]})
    erp = third_party(server)
    assert [found.external_id for found in await erp.lookup("k1", "A")] == ["X1", "X2"]
    assert server.seen[0][2] == {"code": "k1"}
    await erp.close()


async def test_a_lookup_of_another_shape_is_no_empty_one(server: Server) -> None:
    """Taken for one it would make a duplicate."""
    Heard(server, {"fault": "later"})
    erp = third_party(server)
    assert (await failure_of(erp.lookup("k1", "A"))).kind is Failure.TRANSIENT
    await erp.close()


async def test_pages(server: Server) -> None:
    async def handler(request: Request) -> Response:
        assert request.query_params["store"] == "A"
        if request.query_params.get("c") == "2":
            return JSONResponse({"items": [{"id": 9, "store": "A"}], "next": None})
        return JSONResponse({"items": [RECORD], "next": 2})

    server.handler = handler
    erp = third_party(server)
    listed = [page async for page in erp.pages("A")]
    assert listed == [[FOUND], [Found(None, "9", "A", {"code": None, "name": None, "note": None})]]
    await erp.close()


async def test_count(server: Server) -> None:
    Heard(server, {"total": 3})
    erp = third_party(server)
    assert await erp.count("A/B") == 3
    assert server.seen[0][1] == "/count/A%2FB"
    assert await third_party(server, count=None).count("A") is None
    await erp.close()


# Putting adapters together.


def of_kind(name: str) -> dict[str, Any]:
    """A target whose records are told from others in the same collection by a parameter."""
    return {**TARGET, "list": {**TARGET["list"], "params": {**TARGET["list"].get("params", {}), "kind": name}}}


def config(url: str) -> Config:
    part = {"key": "sku", "version": {"path": "v", "kind": "number"}, "list": {"path": "/items"}, "group": "store"}
    entity = {
        "owner": "shop",
        "parts": {"shop": part},
        "mapping": {"code": "key", "name": "shop.name"},
        "third_party": TARGET,
    }
    return Config.model_validate(
        {
            "sources": {"shop": {"base_url": url}},
            "third_parties": {"erp": {"base_url": url, "rate": 5}},
            "entities": {name: {**entity, "third_party": of_kind(name)} for name in ("thing", "other")},
        }
    )


async def test_adapters_from_the_configuration(server: Server) -> None:
    """Entities of one system share its connections and its rate; reading a source does not use them up."""
    Heard(server, {"total": 0, "data": None, "items": []})
    waits: list[None] = []

    async def before_call() -> None:
        waits.append(None)

    sources = build_sources(config(server.url))
    third_parties = build_third_parties(config(server.url), {"erp": before_call})
    assert sources.keys() == third_parties.keys() == {"thing", "other"}
    await asyncio.gather(*(erp.count("A") for erp in third_parties.values()))
    assert len(waits) == 2
    assert isinstance(sources["thing"]["shop"].can_read, bool)
    for erp in third_parties.values():
        await erp.close()
