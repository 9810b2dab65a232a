"""A catalog service that behaves, its configuration, and how a report of the conformance test is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from http_server import Server
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.config import Config
from sync_orchestrator.conformance.report import ConformanceReport

SAMPLE = {"code": "k1", "store": "A", "name": "a thing", "price": 9.5, "stock": 3, "active": True}


class Catalogue:
    """Items by id, paged by offset, with an API key; every fault that a test plants is an attribute."""

    def __init__(self, server: Server) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.made: dict[str, str] = {}
        self.number = 0
        self.ignores_filter = self.ignores_key = self.repeats_creates = self.truncates = self.is_open = False
        self.deletes = True
        self.count_is_off = 0
        self.forbidden_status = 401
        self.stored: Callable[[dict[str, Any]], dict[str, Any]] = dict
        self.updated: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda old, new: {**old, **new}
        self.keys: set[str] = set()
        server.handler = self.handle

    async def handle(self, request: Request) -> Response:
        if request.headers.get("X-Api-Key") != "right" and not self.is_open:
            return JSONResponse({"error": "who are you?"}, self.forbidden_status)
        match request.method, request.path_params["rest"].split("/"):
            case "GET", ["items"]:
                return self.list_items(dict(request.query_params))
            case "GET", ["count"]:
                number = len(self.found(dict(request.query_params)))
                return JSONResponse({"count": number + self.count_is_off if number else 0})
            case "POST", ["items"]:
                return self.create(request.headers.get("Idempotency-Key"), await request.json())
            case method, ["items", number] if number in self.items:
                if method == "DELETE" and self.deletes:
                    del self.items[number]
                if method == "PUT":
                    self.items[number] = self.updated(self.items[number], self.stored(await request.json()))
                return JSONResponse(self.items.get(number, {}))
        return JSONResponse({"error": "no such item"}, 404)

    def create(self, key: str | None, body: dict[str, Any]) -> Response:
        self.keys.add(body["code"])
        if key in self.made and not self.repeats_creates:
            return JSONResponse(self.items[self.made[key or ""]])
        self.number += 1
        made = self.items[f"i{self.number}"] = {"id": f"i{self.number}", **self.stored(body)}
        self.made[key or ""] = made["id"]
        return JSONResponse(made, 201)

    def list_items(self, asked: dict[str, str]) -> Response:
        offset, limit = int(asked.pop("offset", "0")), int(asked.pop("limit", "1000"))
        found = self.found(asked)
        return JSONResponse([] if offset and self.truncates else found[offset : offset + limit])

    def found(self, asked: dict[str, str]) -> list[dict[str, Any]]:
        ignored = {"store"} if self.ignores_filter else {"code"} if self.ignores_key else set()
        return [
            item
            for item in self.items.values()
            if all(str(item.get(name)) == text for name, text in asked.items() if name not in ignored)
        ]


def configuration(server: Server, **target: Any) -> Config:
    return Config.model_validate(document(server, **target))


def document(server: Server, **target: Any) -> dict[str, Any]:
    entity = {
        "owner": "shop",
        "parts": {
            "shop": {
                "key": "sku",
                "group": "store",
                "version": {"path": "v", "kind": "number"},
                "list": {"path": "/things", "params": {"store": "{{ group }}"}, "paging": "none"},
            }
        },
        "mapping": {
            "code": "key",
            "store": "group",
            "name": "shop.name",
            "price": "shop.price",
            "stock": "shop.stock",
            "active": "shop.active",
        },
        "third_party": {
            "system": "catalogue",
            "key_field": "code",
            "group": "store",
            "idempotency": {},
            "create": {"path": "/items"},
            "update": {"method": "PUT", "path": "/items/{{ id }}"},
            "delete": {"path": "/items/{{ id }}"},
            "read": {"path": "/items/{{ id }}"},
            "lookup": {"path": "/items", "params": {"code": "{{ key }}"}},
            "list": {
                "path": "/items",
                "paging": "offset",
                "params": {"store": "{{ group }}", "offset": "{{ offset }}", "limit": "{{ limit }}"},
            },
            "count": {"path": "/count", "number": "count", "params": {"store": "{{ group }}"}},
            **target,
        },
    }
    return {
        "sources": {"shop": {"base_url": server.url}},
        "third_parties": {"catalogue": {"base_url": server.url, "headers": {"X-Api-Key": "right"}, "search_lag": 0}},
        "entities": {"thing": entity},
    }


def failed(report: ConformanceReport) -> set[str]:
    return {ending.behaviour for ending in report.endings if ending.outcome == "failed"}


def skipped(report: ConformanceReport) -> set[str]:
    return {ending.behaviour for ending in report.endings if ending.outcome == "skipped"}
