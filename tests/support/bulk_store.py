"""A third party that takes many records in one request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from http_server import Server
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.third_party import RestThirdParty
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import TargetSettings
from sync_orchestrator.core.ports import Item

MAPPED = ("code", "name")


BULK: dict[str, Any] = {
    "request": {"path": "/bulk", "method": "POST", "body": {"items": "{{ items }}"}},
    "gather": 0.05,
    "size": 10,
    "results": "results",
    "result_id": "id",
    "status": "status",
}


TARGET: dict[str, Any] = {
    "system": "erp",
    "key_field": "code",
    "read": {"path": "/items/{{ id }}"},
    "lookup": {"path": "/items", "params": {"code": "{{ key }}"}},
    "list": {"path": "/items", "params": {"store": "{{ group }}"}},
}


class BulkStore:
    """A server that takes many items in a call; ``says`` makes the answer out of its results."""

    def __init__(self, server: Server) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.calls: list[list[dict[str, Any]]] = []
        self.bodies: list[bytes] = []
        self.bad: set[str] = set()
        self.most = 1000
        self.atomic = False
        self.says: Callable[[list[dict[str, Any]]], Response] = lambda results: JSONResponse({"results": results}, 207)
        server.handler = self._handle

    async def _handle(self, request: Request) -> Response:
        if request.method == "GET":
            code = request.query_params.get("code")
            one = self.items.get(request.url.path.removeprefix("/items/"))
            if request.url.path != "/items":
                return JSONResponse(one) if one else JSONResponse({}, 404)
            return JSONResponse([item for item in self.items.values() if code in (None, item["code"])])
        self.bodies.append(await request.body())
        items = json.loads(self.bodies[-1])["items"]
        self.calls.append(items)
        if len(items) > self.most:
            return JSONResponse({"error": "too many"}, 429)
        if self.atomic and any(item["key"] in self.bad for item in items):
            return JSONResponse({"error": "one of them is bad"}, 422)
        return self.says([self._write(item) for item in items])

    def _write(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["key"] in self.bad:
            return {"key": item["key"], "status": 422, "error": "bad"}
        item_id = item["id"] or f"i-{item['key']}"
        if item["op"] == "delete":
            self.items.pop(item_id, None)
        elif item["op"] == "update" and item_id not in self.items:
            return {"key": item["key"], "status": 404}
        else:
            self.items[item_id] = {"id": item_id, **item["payload"]}
        return {"key": item["key"], "id": item_id, "status": 200}


@pytest.fixture
def store(server: Server) -> BulkStore:
    return BulkStore(server)


@pytest_asyncio.fixture
async def http(server: Server) -> AsyncIterator[HttpClient]:
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    yield client
    await client.close()


def third_party(http: HttpClient, **changes: Any) -> RestThirdParty:
    """All three verbs are set up alike; ``changes`` are of the bulk."""
    bulk = {**BULK, **changes}
    return RestThirdParty(
        http,
        TargetSettings.model_validate({**TARGET, "bulk_create": bulk, "bulk_update": bulk, "bulk_delete": bulk}),
        MAPPED,
    )


def item(key: str, external_id: str | None = None, group: str | None = "A", **more: Any) -> Item:
    return Item(key, group, {"code": key, "name": f"name of {key}"}, external_id, **more)
