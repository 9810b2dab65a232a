"""The three internal systems, each with its own fields and its own clock: one program, run once for each role.

``python -m demo.sources catalogue --port 9101``. Below ``/_control`` is what the company's own staff does there; the
synchronisation never calls it. Each change answers with the CloudEvent that the system would send.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import time
from datetime import UTC, datetime
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from demo.bearer import BearerOnly
from demo.data import stones

FIELDS = {
    "catalogue": ("sku", "collection", "name", "cut", "color", "clarity"),
    "lab": ("sku", "carat", "depth", "table", "x", "y", "z"),
    "pricing": ("sku", "price", "currency"),
}
CLOCKS = {"catalogue": 0.0, "lab": -47 * 60.0, "pricing": 13 * 60.0}
"""Seconds by which each system's clock is off."""


class System:
    """One internal system: its rows by SKU, and a clock that never shows the same time twice."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.rows: dict[str, dict[str, Any]] = {}
        self.keys: list[str] = []
        self._last = 0.0
        self._events = itertools.count(1)
        self._started = int(time.time())
        for stone in stones():
            self.write({name: stone[name] for name in FIELDS[role]})

    def now(self) -> str:
        """The system's time, in microseconds that only grow."""
        self._last = max(self._last + 1e-6, time.time() + CLOCKS[self.role])
        return datetime.fromtimestamp(self._last, UTC).isoformat(timespec="microseconds")

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        sku = row["sku"]
        if sku not in self.rows:
            bisect.insort(self.keys, sku)
        self.rows[sku] = {**row, "updated_at": self.now()}
        return self.rows[sku]

    def remove(self, sku: str) -> None:
        del self.rows[sku]
        del self.keys[bisect.bisect_left(self.keys, sku)]

    def change(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carries out one order of the staff and returns the notification of it."""
        sku = order["sku"]
        if order["op"] == "delete":
            self.remove(sku)
            return self._event("deleted", sku, self.now(), None)
        action = "updated" if sku in self.rows else "created"
        row = self.write({**self.rows.get(sku, {}), **order["set"], "sku": sku})
        return self._event(action, sku, row["updated_at"], row)

    def _event(self, action: str, sku: str, at: str, data: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "specversion": "1.0", "id": f"{self._started}-{next(self._events)}", "source": self.role,
            "type": f"stone.{action}", "subject": sku, "time": at, **({} if data is None else {"data": data}),
        }


def create_app(role: str, token: str) -> Starlette:
    """The HTTP API of one system."""
    system = System(role)

    async def listing(request: Request) -> Response:
        after, limit = request.query_params.get("after", ""), int(request.query_params.get("limit", "500"))
        collection = request.query_params.get("collection")
        rest = itertools.islice(system.keys, bisect.bisect_right(system.keys, after), None)
        rows = (system.rows[sku] for sku in rest)
        wanted = (row for row in rows if collection is None or row["collection"] == collection)
        return JSONResponse({"stones": list(itertools.islice(wanted, limit))})

    async def one(request: Request) -> Response:
        row = system.rows.get(request.path_params["sku"])
        return JSONResponse({"error": "no such stone"}, 404) if row is None else JSONResponse(row)

    async def many(request: Request) -> Response:
        skus = request.query_params["skus"].split(",")
        return JSONResponse({"stones": [system.rows[sku] for sku in skus if sku in system.rows]})

    async def count(request: Request) -> Response:
        collection = request.query_params["collection"]
        return JSONResponse({"count": sum(1 for row in system.rows.values() if row["collection"] == collection)})

    async def collections(request: Request) -> Response:
        return JSONResponse({"collections": sorted({row["collection"] for row in system.rows.values()})})

    async def changes(request: Request) -> Response:
        return JSONResponse([system.change(order) for order in await request.json()])

    async def dump(request: Request) -> Response:
        return JSONResponse(system.rows)

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/stones", listing), Route("/v1/stones/{sku}", one), Route("/v1/lookup", many),
            Route("/v1/count", count), Route("/v1/collections", collections), Route("/healthz", healthz),
            Route("/_control/changes", changes, methods=["POST"]), Route("/_control/dump", dump),
        ],
        middleware=[Middleware(BearerOnly, token=f"Bearer {token}", header=b"authorization", below="/v1/")],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=FIELDS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token", default="demo-source")
    arguments = parser.parse_args()
    uvicorn.run(create_app(arguments.role, arguments.token), host="127.0.0.1", port=arguments.port,
                log_level="error", access_log=False)


if __name__ == "__main__":
    main()
