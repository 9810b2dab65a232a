"""The third party: an ERP with an API of its own shape that gives its own ids, is slow, and misbehaves on command.

``python -m demo.erp --port 9104``. Its store is not unique by item code, so a careless client makes twins. Below
``/_control`` the story switches faults on and looks at the store itself; faults never touch it.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import random
import secrets
import time
from collections import Counter
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.bearer import BearerOnly


class Store:
    """The ERP's items by reference, and those it has deleted, which it can bring back."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.deleted: dict[str, dict[str, Any]] = {}
        self.refs: list[str] = []
        self.of_code: dict[str, set[str]] = {}
        self.of_warehouse: dict[str, list[str]] = {}

    def put(self, item: dict[str, Any], ref: str | None = None) -> dict[str, Any]:
        if ref is None:
            ref = f"ITM-{secrets.token_hex(5)}"
        else:
            self.remove(ref)
        record = {**item, "ref": ref, "touchedAt": time.time()}
        self.items[ref] = record
        self.of_code.setdefault(str(item.get("itemCode")), set()).add(ref)
        bisect.insort(self.of_warehouse.setdefault(str(item.get("warehouse")), []), ref)
        return record

    def remove(self, ref: str) -> dict[str, Any]:
        record = self.items.pop(ref)
        self.of_code[str(record.get("itemCode"))].discard(ref)
        self.of_warehouse[str(record.get("warehouse"))].remove(ref)
        return record

    def damage(self, order: dict[str, Any]) -> list[list[str]]:
        """Loses, alters and brings back so many records each; returns (item code, kind of drift) of all it did."""
        choice = random.Random(order.get("seed", 7))
        mirrored = sorted(ref for ref, record in self.items.items() if not record["itemCode"].startswith("HAND-"))
        picked = choice.sample(mirrored, order["lose"] + order["alter"])
        done = []
        for ref in picked[: order["lose"]]:
            done.append([self.remove(ref)["itemCode"], "missing"])
        for ref in picked[order["lose"] :]:
            record = self.items[ref]
            record["unitPrice"] = record["unitPrice"] + 1
            done.append([record["itemCode"], "different"])
        here = {record["itemCode"] for record in self.items.values()}
        gone = sorted(code for code in self.deleted if code not in here)
        for code in choice.sample(gone, min(order["revive"], len(gone))):
            self.put({name: value for name, value in self.deleted[code].items() if name != "ref"})
            done.append([code, "extra"])
        return done


class Faults:
    """How the ERP misbehaves now: shares of calls, a limit a second, and the end of an outage."""

    def __init__(self) -> None:
        self.errors = self.lost = 0.0
        self.limit: int | None = None
        self.outage_until = 0.0
        self.latency = 0.02
        self.stats: Counter[str] = Counter()
        self._random = random.Random(11)
        self._second = self._calls = 0

    def set(self, order: dict[str, Any]) -> None:
        for name in ("errors", "lost", "limit", "latency"):
            if name in order:
                setattr(self, name, order[name])
        if "outage" in order:
            self.outage_until = time.monotonic() + order["outage"]

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def over_limit(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._calls = second, 0
        self._calls += 1
        return self.limit is not None and self._calls > self.limit


class Misbehaving:
    """Wraps the API: latency, outage, 429, 5xx before or after the work, and answers lost after it."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._app = app
        self._faults = faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/api/"):
            await self._app(scope, receive, send)
            return
        faults = self._faults
        faults.stats["calls"] += 1
        await asyncio.sleep(faults.latency)
        if time.monotonic() < faults.outage_until:
            await self._answer(503, "outage", scope, receive, send)
        elif faults.over_limit():
            await self._answer(429, "throttled", scope, receive, send)
        elif faults.chance(faults.errors):
            if faults.chance(0.3):
                await self._app(scope, receive, _swallow)
                faults.stats["5xx after the work"] += 1
            await self._answer(500, "5xx", scope, receive, send)
        elif faults.chance(faults.lost):
            await self._app(scope, receive, _swallow)
            faults.stats["answers lost"] += 1
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9999")]})
        else:
            await self._app(scope, receive, send)

    async def _answer(self, status: int, what: str, scope: Scope, receive: Receive, send: Send) -> None:
        self._faults.stats[what] += 1
        headers = {"Retry-After": "1"} if status == 429 else {}
        await JSONResponse({"fault": what}, status, headers=headers)(scope, receive, send)


async def _swallow(message: Message) -> None:
    return None


def create_app(key: str) -> Starlette:
    """The ERP's API."""
    store, faults = Store(), Faults()

    def page(refs: list[str], request: Request) -> Response:
        cursor, limit = request.query_params.get("cursor", ""), int(request.query_params.get("limit", "200"))
        start = bisect.bisect_right(refs, cursor)
        chosen = refs[start : start + limit]
        following = chosen[-1] if start + limit < len(refs) else None
        return JSONResponse({"data": {"items": [store.items[ref] for ref in chosen], "nextCursor": following},
                             "total": len(refs)})

    async def items(request: Request) -> Response:
        if request.method == "POST":
            faults.stats["creates"] += 1
            return JSONResponse({"data": store.put((await request.json())["item"])}, 201)
        if code := request.query_params.get("itemCode"):
            return page(sorted(store.of_code.get(code, ())), request)
        return page(store.of_warehouse.get(request.query_params["warehouse"], []), request)

    async def item(request: Request) -> Response:
        ref = request.path_params["ref"]
        if ref not in store.items:
            return JSONResponse({"fault": "no such item"}, 404)
        if request.method == "PUT":
            faults.stats["updates"] += 1
            return JSONResponse({"data": store.put((await request.json())["item"], ref)})
        if request.method == "DELETE":
            faults.stats["deletes"] += 1
            record = store.remove(ref)
            store.deleted[record["itemCode"]] = record
            return Response(status_code=204)
        return JSONResponse({"data": store.items[ref]})

    async def count(request: Request) -> Response:
        return JSONResponse({"total": len(store.of_warehouse.get(request.path_params["warehouse"], []))})

    async def set_faults(request: Request) -> Response:
        faults.set(await request.json())
        return JSONResponse({})

    async def damage(request: Request) -> Response:
        return JSONResponse(store.damage(await request.json()))

    async def by_hand(request: Request) -> Response:
        return JSONResponse([store.put(record)["ref"] for record in await request.json()])

    async def dump(request: Request) -> Response:
        return JSONResponse(list(store.items.values()))

    async def stats(request: Request) -> Response:
        return JSONResponse(dict(faults.stats))

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/api/v2/items", items, methods=["GET", "POST"]),
            Route("/api/v2/items/{ref}", item, methods=["GET", "PUT", "DELETE"]),
            Route("/api/v2/warehouses/{warehouse}/count", count), Route("/healthz", healthz),
            Route("/_control/faults", set_faults, methods=["POST"]), Route("/_control/stats", stats),
            Route("/_control/damage", damage, methods=["POST"]), Route("/_control/dump", dump),
            Route("/_control/by_hand", by_hand, methods=["POST"]),
        ],
        middleware=[Middleware(BearerOnly, token=key, header=b"x-api-key", below="/api/"),
                    Middleware(Misbehaving, faults=faults)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", default="demo-erp")
    arguments = parser.parse_args()
    uvicorn.run(create_app(arguments.key), host="127.0.0.1", port=arguments.port, log_level="critical",
                access_log=False)


if __name__ == "__main__":
    main()
