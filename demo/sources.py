"""Two internal systems with APIs, each with fields, answers and a clock of its own: one program, run once for each.

``python -m demo.sources lab``. The API is below ``/v1``. Below ``/_control`` is what the company's own people do
there; the sync never calls it, and each change answers with the CloudEvent that the system would send.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import uvicorn
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from demo import access
from demo.data import Stone, stones

Row = dict[str, Any]

_MOST_ROWS = 1000
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Role:
    """What makes a system the one it is. ``many`` and ``one`` wrap its answers; None for a bare list or row."""

    noun: str
    key: str
    fields: tuple[str, ...]
    clock: timedelta
    many: str | None = None
    one: str | None = None


ROLES = {
    "lab": Role(
        "reports",
        "stone",
        ("carat", "depth", "table", "x", "y", "z"),
        timedelta(minutes=-47),
        many="reports",
        one="report",
    ),
    "pricing": Role("prices", "sku", ("price", "currency"), timedelta(minutes=13)),
}


class Order(BaseModel):
    """One thing that people do: ``set`` holds all fields for ``create``, those that change for ``update``.

    ``recreate`` brings a deleted record back as it was, changed by ``set``.
    """

    model_config = ConfigDict(extra="forbid")

    op: Literal["create", "update", "delete", "recreate"]
    key: str
    set: dict[str, Any] = {}


_ORDERS = TypeAdapter(list[Order])


class Refused(Exception):
    """An order that does not fit what is there."""


class System:
    """One internal system: its rows by key, and a clock that never shows the same time twice."""

    def __init__(self, role_name: str, data: Iterable[Stone]) -> None:
        self.name = role_name
        self.role = ROLES[role_name]
        self._data = list(data)
        self._last = 0
        self._ids = itertools.count(1)
        self._started = time.time_ns()
        self.reset()

    def reset(self) -> None:
        """Everything as at the start, with newer versions."""
        self.rows: dict[str, Row] = {}
        self.deleted: dict[str, Row] = {}
        self.keys: list[str] = []
        for stone in self._data:
            self._write(stone["sku"], {name: stone[name] for name in self.role.fields})

    def restore(self, rows: dict[str, Row]) -> None:
        """Takes an earlier dump in place of everything here, with the versions it had."""
        self.rows, self.deleted, self.keys = dict(rows), {}, sorted(rows)

    def listed(self, after: str, limit: int) -> list[Row]:
        """A page of the rows behind a key, in the order of keys."""
        start = bisect.bisect_right(self.keys, after)
        return [self.rows[key] for key in self.keys[start : start + limit]]

    def carry_out(self, order: Order) -> Row:
        """Does what people ask for and returns the notification of it.

        Raises Refused.
        """
        self._check(order)
        if order.op == "delete":
            self.deleted[order.key] = self._take(order.key)
            return self._event("deleted", order.key, self._now())
        before = self.deleted.pop(order.key, {}) if order.op == "recreate" else self.rows.get(order.key, {})
        row = self._write(order.key, {**before, **order.set})
        return self._event("updated" if order.op == "update" else "created", order.key, row["updated_at"], row)

    def _check(self, order: Order) -> None:
        here, created = order.key in self.rows, order.op in ("create", "recreate")
        if here and created:
            raise Refused(f"{order.key} is here already")
        if not here and not created:
            raise Refused(f"there is no {order.key}")
        if order.op == "recreate" and order.key not in self.deleted:
            raise Refused(f"{order.key} was never deleted")
        if unknown := set(order.set) - set(self.role.fields):
            raise Refused(f"{self.name} knows no {', '.join(sorted(unknown))}")
        if order.op == "create" and (absent := set(self.role.fields) - set(order.set)):
            raise Refused(f"{order.key} lacks {', '.join(sorted(absent))}")

    def _write(self, key: str, row: Row) -> Row:
        if key not in self.rows:
            bisect.insort(self.keys, key)
        self.rows[key] = {**row, self.role.key: key, "updated_at": self._now()}
        return self.rows[key]

    def _take(self, key: str) -> Row:
        del self.keys[bisect.bisect_left(self.keys, key)]
        return self.rows.pop(key)

    def _now(self) -> str:
        now = time.time_ns() // 1000 + self.role.clock // _MICROSECOND
        self._last = max(self._last + 1, now)
        return (_EPOCH + self._last * _MICROSECOND).isoformat(timespec="microseconds")

    def _event(self, action: str, key: str, at: str, data: Row | None = None) -> Row:
        event = {
            "specversion": "1.0",
            "id": f"{self._started}-{next(self._ids)}",
            "source": self.name,
            "type": f"stone.{action}",
            "subject": key,
            "time": at,
        }
        return event if data is None else {**event, "data": data}


def create_app(role_name: str, token: str, data: Iterable[Stone]) -> Starlette:
    """The HTTP API of one system that begins with these stones."""
    system = System(role_name, data)
    role = system.role

    def many(rows: list[Row]) -> Response:
        return JSONResponse({role.many: rows} if role.many else rows)

    async def listing(request: Request) -> Response:
        asked = request.query_params
        limit = asked.get("limit", "500")
        if not (limit.isascii() and limit.isdigit()) or int(limit) < 1:
            return JSONResponse({"error": "limit must be a whole number above zero"}, 400)
        return many(system.listed(asked.get("after", ""), min(int(limit), _MOST_ROWS)))

    async def one(request: Request) -> Response:
        row = system.rows.get(request.path_params["key"])
        if row is None:
            return JSONResponse({"error": "no such record"}, 404)
        return JSONResponse({role.one: row} if role.one else row)

    async def lookup(request: Request) -> Response:
        keys = request.query_params.get("keys", "").split(",")
        return many([system.rows[key] for key in keys if key in system.rows])

    async def changes(request: Request) -> Response:
        try:
            orders = _ORDERS.validate_json(await request.body())
        except ValidationError as error:
            return JSONResponse({"error": str(error)}, 400)
        events: list[Row] = []
        try:
            for order in orders:
                events.append(system.carry_out(order))
        except Refused as refusal:
            return JSONResponse({"error": str(refusal), "events": events}, 409)
        return JSONResponse(events)

    async def dump(request: Request) -> Response:
        return JSONResponse(system.rows)

    async def reset(request: Request) -> Response:
        system.reset()
        return JSONResponse({"records": len(system.rows)})

    async def restore(request: Request) -> Response:
        system.restore(await request.json())
        return JSONResponse({"records": len(system.rows)})

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route(f"/v1/{role.noun}", listing),
            Route(f"/v1/{role.noun}/{{key}}", one),
            Route("/v1/lookup", lookup),
            Route("/healthz", healthz),
            Route("/_control/changes", changes, methods=["POST"]),
            Route("/_control/dump", dump),
            Route("/_control/reset", reset, methods=["POST"]),
            Route("/_control/restore", restore, methods=["POST"]),
        ],
        middleware=[Middleware(access.RequiresHeader, "Authorization", f"Bearer {token}", "/v1/")],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=ROLES)
    role_name = parser.parse_args().role
    uvicorn.run(
        create_app(role_name, access.source_token(), stones()),
        host="127.0.0.1",
        port=access.port(role_name),
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
