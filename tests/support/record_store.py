"""A third party behind a real port, whose manners a test chooses: a collection of items, and their stock levels."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from fakes import two_part_config
from http_server import Server
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from world import World

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.third_party import RestThirdParty
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import TargetSettings
from sync_orchestrator.core.drain.drain import DrainReport, drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.full_sync.push_group import StepReport
from sync_orchestrator.core.ports import Item
from sync_orchestrator.core.runtime import perform
from sync_orchestrator.core.validation.validate import GroupValidation, validate

Answers = Callable[["Store", dict[str, Any]], Response]

THEIRS: dict[str, Any] = {
    "system": "erp",
    "key_field": "code",
    "group": "store",
    "create": {"path": "/items"},
    "update": {"method": "PUT", "path": "/items/{{ id }}"},
    "delete": {"path": "/items/{{ id }}"},
    "read": {"path": "/items/{{ id }}"},
    "lookup": {"path": "/items", "params": {"code": "{{ key }}"}},
    "list": {"path": "/items", "params": {"store": "{{ group }}"}},
}
OURS: dict[str, Any] = {**THEIRS, "ids": "ours", "create": None, "lookup": None}


class Store:
    """What the server holds, and how it behaves. ``calls`` counts them by verb and first part of the path.

    ``our_ids``: an item's id is its code, and a PUT makes what is missing. ``unique``: a second item with a code that
    is taken is refused, though a deleted one has it. ``says``: how a write is answered. ``keeps``: a deleted item
    stays, marked. ``remembers``: a create with a known Idempotency-Key is answered as the first one.
    """

    def __init__(
        self,
        server: Server,
        *,
        our_ids: bool = False,
        unique: bool = False,
        keeps: bool = False,
        remembers: bool = False,
        put_makes: bool = True,
    ) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.stock: dict[str, Any] = {}
        self.calls: Counter[str] = Counter()
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.our_ids, self.unique, self.keeps = our_ids, unique, keeps
        self.remembers, self.put_makes = remembers, put_makes
        self.says: Answers = lambda store, item: JSONResponse(item)
        self.missing: Callable[[], Response] = lambda: JSONResponse({"error": "no such item"}, 404)
        self.precondition: Callable[[Request, Any, dict[str, Any]], Response | None] = lambda request, body, item: None
        self.shown: Callable[[dict[str, Any]], Response] = JSONResponse
        self.delete_refused: Callable[[Request, str], Response | None] = lambda request, item_id: None
        self.instead: defaultdict[str, list[int]] = defaultdict(list)
        """By verb and resource: statuses with which the next calls are answered, and nothing is done."""
        self.after: defaultdict[str, list[int]] = defaultdict(list)
        """The same, after the call has been carried out."""
        self._made: dict[str, str] = {}
        server.handler = self._handle

    def of(self, code: str) -> list[str]:
        """The ids of items with this code."""
        return sorted(item_id for item_id, item in self.items.items() if item.get("code") == code)

    def by_hand(self, **fields: Any) -> str:
        """An item that somebody made there."""
        item_id = fields["code"] if self.our_ids else f"x{len(self.items) + 1}"
        self.items[item_id] = {"id": item_id, "v": 1, **fields}
        return item_id

    async def _handle(self, request: Request) -> Response:
        content = await request.body()
        body = json.loads(content) if content else None
        resource, *rest = request.path_params["rest"].split("/")
        call = f"{request.method} {resource}"
        self.calls[call] += 1
        if request.method != "GET":
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
        if self.instead[call]:
            return JSONResponse({"error": "not now"}, self.instead[call].pop(0))
        answer = self._stock(request, rest[0], body) if resource == "stock" else self._items(request, rest, body)
        return JSONResponse({"error": "lost"}, self.after[call].pop(0)) if self.after[call] else answer

    def _stock(self, request: Request, item_id: str, body: Any) -> Response:
        if request.method == "PUT":
            self.stock[item_id] = body["level"]
        if item_id not in self.stock:
            return JSONResponse({"error": "no stock"}, 404)
        return JSONResponse({"item": item_id, "level": self.stock[item_id]})

    def _items(self, request: Request, rest: list[str], body: Any) -> Response:
        if not rest:
            return self._create(request, body) if request.method == "POST" else self._list(request)
        item = self.items.get(rest[0])
        if len(rest) == 2:
            return self._action(rest[1], item)
        if request.method == "PUT" and item is None and self.our_ids and self.put_makes:
            return self._put(rest[0], body)
        if item is None:
            return self.missing()
        if request.method == "GET":
            return self.shown(item)
        return self._change(request, rest[0], item, body)

    def _change(self, request: Request, item_id: str, item: dict[str, Any], body: Any) -> Response:
        if (refused := self.precondition(request, body, item)) is not None:
            return refused
        if request.method != "DELETE":
            return self._put(item_id, body)
        if (refused := self.delete_refused(request, item_id)) is not None:
            return refused
        if self.keeps:
            item["deleted"] = True
        else:
            del self.items[item_id]
        return Response(status_code=204)

    def _create(self, request: Request, body: Any) -> Response:
        key = request.headers.get("idempotency-key") or (body or {}).get("request_id")
        if self.remembers and key in self._made:
            return self.says(self, self.items.get(self._made[key], {"id": self._made[key]}))
        if self.unique and self.of(body["code"]):
            return JSONResponse({"error": "the code is taken"}, 409)
        item_id = self.by_hand(**body)
        self._made[key or ""] = item_id
        return self.says(self, self.items[item_id])

    def _put(self, item_id: str, body: Any) -> Response:
        old = self.items.get(item_id, {"v": 0})
        self.items[item_id] = {**old, "id": item_id, **body, "v": old["v"] + 1}
        return self.says(self, self.items[item_id])

    def _action(self, action: str, item: dict[str, Any] | None) -> Response:
        if item is None:
            return self.missing()
        if item.get("state") == action:
            return JSONResponse({"error": f"it is {action} already"}, 409)
        item["state"] = action
        return JSONResponse(item)

    def _list(self, request: Request) -> Response:
        asked = dict(request.query_params)
        return JSONResponse(
            [item for item in self.items.values() if all(str(item.get(name)) == text for name, text in asked.items())]
        )


def item(key: str = "k1", external_id: str | None = None, **payload: Any) -> Item:
    """A record to be written."""
    return Item(key, "A", {"code": key, "name": "n", **payload}, external_id, f"thing/{key}/A/0")


def adapter(server: Server, target: dict[str, Any], *mapped: str) -> RestThirdParty:
    """The third party at a server."""
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    return RestThirdParty(client, TargetSettings.model_validate(target), ("code", "name", *mapped))


class HttpWorld(World):
    """Sources in memory, and a third party over HTTP."""

    def run_drain(self) -> DrainReport:
        return perform(self.context, drain(self.context, linger=0, most_seconds=60))

    def run_full_sync(self, group: str = "A", **options: Any) -> StepReport:
        return perform(self.context, full_sync(self.context, self.entity, group, patience=0.3, **options))[1]

    def run_validation(self, group: str = "A", **options: Any) -> GroupValidation:
        return perform(self.context, validate(self.context, self.entity, group, **options))

    def run_until_settled(self, times: int = 3) -> None:
        """Drains until what was unknown is known."""
        for _ in range(times):
            self.run_drain()
            self.advance_clock(61)


def http_world(engine: Engine, server: Server, target: dict[str, Any]) -> HttpWorld:
    """A world whose item is kept at a server; its fields are code, name, store and count."""
    config = two_part_config(entity={"third_party": target})
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    third_party = RestThirdParty(client, config.entities["item"].third_party, ("code", "store", "name", "count"))
    return HttpWorld(engine, config, erp=third_party)  # type: ignore[arg-type]
