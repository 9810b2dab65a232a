"""A third party behind a real port that keeps each item in a store, which a call can name in any of its places."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from fakes import two_part_config
from http_server import Server
from record_store import HttpWorld
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.third_party import RestThirdParty
from sync_orchestrator.config import HttpSettings as HttpSettings

MAPPING = {"code": "key", "name": "shop.name", "count": "stock.count"}
"""No field of it holds the business group."""

TARGET: dict[str, Any] = {
    "system": "erp",
    "key_field": "code",
    "create": {"path": "/items"},
    "update": {"method": "PUT", "path": "/items/{{ id }}"},
    "delete": {"path": "/items/{{ id }}"},
    "read": {"path": "/items/{{ id }}"},
    "lookup": {"path": "/items", "params": {"code": "{{ key }}"}},
    "list": {"path": "/items", "params": {"store": "{{ group }}"}},
}
REFERENCE: dict[str, Any] = {"store_id": {"path": "/stores", "params": {"code": "{{ group }}"}, "record": "[0].id"}}


def writing(**settings: Any) -> dict[str, Any]:
    """The target whose create and update have these settings, too."""
    return {**TARGET, "create": {**TARGET["create"], **settings}, "update": {**TARGET["update"], **settings}}


_ITEM = {"id": "{{ id }}", "code": "{{ key }}", "payload": "{{ payload }}", "op": "{{ op }}"}


def in_bulk(**fields: Any) -> dict[str, Any]:
    """The target that writes in calls of many records, each with these fields."""
    bulk = {
        "request": {"path": "/bulk"},
        "item": {**_ITEM, **fields},
        "results": "@",
        "result_id": "id",
        "status": "status",
        "gather": 0.01,
    }
    return {
        **{name: TARGET[name] for name in ("system", "key_field", "delete", "read", "lookup", "list")},
        "bulk_create": bulk,
        "bulk_update": bulk,
    }


PLACE = {"method": "PUT", "path": "/placement/{{ id }}", "body": {"store": "{{ group }}"}}

CARRIERS: dict[str, dict[str, Any]] = {
    "body": writing(body="{{ payload | plus(store=group) }}"),
    "params": writing(params={"store": "{{ group }}"}),
    "header": writing(headers={"X-Store": "{{ group }}"}),
    "reference": {**writing(body="{{ payload | plus(store_id=store_id) }}"), "references": REFERENCE},
    "linked call": writing(then=[PLACE]),
    "bulk item": in_bulk(store="{{ group }}"),
    "reference in a bulk item": {**in_bulk(store_id="{{ store_id }}"), "references": REFERENCE},
}
"""Ways in which the business group is sent though no mapped field holds it."""


class Catalog:
    """Items by id, each in a store. ``calls`` counts calls by verb and first part of the path."""

    def __init__(self, server: Server) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.calls: Counter[str] = Counter()
        self.refused: set[str | None] = set()
        """Stores that take no items."""
        self.lost: list[int] = []
        """Statuses with which the next writes are answered, after they were carried out."""
        self.known_stores = {"A", "B", "C"}
        self.bodies: list[Any] = []
        self._number = 0
        server.handler = self._handle

    def of(self, code: str) -> dict[str, Any]:
        """The one item with this code."""
        [found] = [item for item in self.items.values() if item["code"] == code]
        return found

    def by_hand(self, **fields: Any) -> str:
        """An item that somebody made there."""
        self._number += 1
        self.items[f"x{self._number}"] = {"id": f"x{self._number}", "store": None, **fields}
        return f"x{self._number}"

    async def _handle(self, request: Request) -> Response:
        content = await request.body()
        body: Any = json.loads(content) if content else None
        parts = request.path_params["rest"].split("/")
        self.calls[f"{request.method} {parts[0]}"] += 1
        named = {
            name: value
            for name, value in (("store", request.query_params.get("store")), ("store", request.headers.get("x-store")))
            if value
        }
        if request.method != "GET":
            self.bodies.append(body)
        match request.method, parts:
            case "GET", ["stores"]:
                code = request.query_params["code"]
                return JSONResponse([{"id": f"s-{code}"}] if code in self.known_stores else [])
            case "GET", ["items"]:
                return JSONResponse(self._found(dict(request.query_params)))
            case "GET", ["count"]:
                return JSONResponse({"n": len(self._found(dict(request.query_params)))})
            case "GET", ["items", item_id]:
                return JSONResponse(self.items.get(item_id, {}), 200 if item_id in self.items else 404)
            case "POST", ["items"]:
                return self._answered(self._write(None, {**body, **named}))
            case "PUT", ["items", item_id]:
                return self._answered(self._write(item_id, {**body, **named}))
            case "PUT", ["placement", item_id]:
                return self._answered(self._write(item_id, body))
            case "DELETE", ["items", item_id]:
                self.items.pop(item_id, None)
                return Response(status_code=204)
            case "POST", ["bulk"]:
                return JSONResponse([self._one_of_many(each) for each in body])
        return JSONResponse({"error": "no such thing"}, 404)

    def _found(self, asked: dict[str, str]) -> list[dict[str, Any]]:
        return [
            item for item in self.items.values() if all(str(item.get(name)) == text for name, text in asked.items())
        ]

    def _write(self, item_id: str | None, fields: dict[str, Any]) -> tuple[dict[str, Any], int]:
        if (store_id := fields.pop("store_id", None)) is not None:
            fields = {**fields, "store": store_id.removeprefix("s-")}
        if fields.get("store") in self.refused:
            return {"error": "this store takes no items"}, 422
        if item_id is None:
            item_id = self.by_hand()
        elif item_id not in self.items:
            return {"error": "no such item"}, 404
        self.items[item_id] |= fields
        return self.items[item_id], 200

    def _answered(self, answer: tuple[dict[str, Any], int]) -> Response:
        return JSONResponse({"error": "lost"}, self.lost.pop(0)) if self.lost else JSONResponse(*answer)

    def _one_of_many(self, each: dict[str, Any]) -> dict[str, Any]:
        fields = {**each["payload"], **{name: each[name] for name in ("store", "store_id") if name in each}}
        answer, status = self._write(each["id"], fields)
        return {"id": answer.get("id"), "status": status}


def catalog_world(engine: Engine, server: Server, target: dict[str, Any], **entity: Any) -> HttpWorld:
    """A world whose items are kept in a catalog; no mapped field holds their business group."""
    config = two_part_config(entity={"third_party": target, "mapping": MAPPING, **entity})
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    third_party = RestThirdParty(client, config.entities["item"].third_party, tuple(config.entities["item"].mapping))
    return HttpWorld(engine, config, erp=third_party)  # type: ignore[arg-type]
