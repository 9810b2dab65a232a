"""A platform and an ERP over HTTP, as ``docs/cookbook/erp-story.md`` describes them, and work at them by hand."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections import Counter
from typing import Any

from api_client import client_of, service
from cookbook_pages import fences, merge, parse_yaml
from http_server import Server
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator import composition
from sync_orchestrator.config import parse_config
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.full_sync.push_group import StepReport
from sync_orchestrator.core.intake.polling import poll
from sync_orchestrator.core.validation.validate import validate
from sync_orchestrator.core.validation.verdict import GroupValidation

SECRET = "the webhook secret of the ERP"

WRITES = ("POST", "PUT", "PATCH", "DELETE")


class System:
    """One system behind a port: ``calls`` by method and path, ``arrivals`` in seconds, ``refusals`` to give first."""

    def __init__(self) -> None:
        self.server = Server()
        self.server.handler = self.receive
        self.url = self.server.url
        self.calls: Counter[str] = Counter()
        self.arrivals: list[float] = []
        self.refusals: list[Response] = []
        self.is_down = False
        self.changed = 1

    @property
    def writes(self) -> int:
        """How many writes it was sent, logins left out."""
        return sum(n for call, n in self.calls.items() if call.split()[0] in WRITES and not call.endswith("/login"))

    def step(self) -> int:
        """The number of the next change."""
        self.changed += 1
        return self.changed

    async def receive(self, request: Request) -> Response:
        """Counts the call, and refuses it or handles it."""
        self.calls[f"{request.method} /{request.url.path.split('/')[1]}"] += 1
        self.arrivals.append(time.monotonic())
        if self.is_down:
            return JSONResponse({"error": "down"}, 500)
        if self.refusals:
            return self.refusals.pop(0)
        body = await request.body()
        return self.respond(request, json.loads(body) if body else None)

    def respond(self, request: Request, body: Any) -> Response:
        """The response to one call."""
        raise NotImplementedError


class Platform(System):
    """A shop platform: it makes orders and products, and shows the stock of its products."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: dict[str, dict[str, Any]] = {}
        self.products: dict[str, dict[str, Any]] = {}
        self.receipts: dict[str, dict[str, Any]] = {}

    def sell(self, number: str, sku: str, quantity: int, store: str = "A") -> None:
        """An order comes in."""
        self.orders[number] = {
            "id": number,
            "store": store,
            "sku": sku,
            "quantity": quantity,
            "changed": self.step(),
        }

    def offer(self, sku: str, title: str, store: str = "A") -> None:
        """A product is made; its stock is not known yet."""
        self.products[sku] = {"sku": sku, "store": store, "title": title, "stock": None}

    def respond(self, request: Request, body: Any) -> Response:
        """The response to one call."""
        query = request.query_params
        match request.url.path.strip("/").split("/"):
            case ["stores"]:
                return JSONResponse({"stores": ["A"]})
            case ["orders"]:
                rows = [row for row in self.orders.values() if query.get("store") in (None, row["store"])]
                rows = [row for row in rows if row["changed"] >= int(query.get("changed_since", 0))]
                rows = sorted((row for row in rows if row["id"] > query.get("after", "")), key=lambda row: row["id"])
                return JSONResponse({"orders": rows[: int(query.get("limit", 1000))]})
            case ["orders", number]:
                return show(self.orders.get(number))
            case ["products"]:
                rows = [row for row in self.products.values() if row["store"] == query["store"]]
                rows = [row for row in rows if query.get("sku") in (None, row["sku"])]
                return JSONResponse({"products": rows})
            case ["receipts"]:
                return JSONResponse(
                    {"receipts": [row for row in self.receipts.values() if row["store"] == query["store"]]}
                )
            case ["receipts", number] if request.method == "PUT":
                self.receipts[number] = body
                return show(body)
            case ["receipts", number]:
                return show(self.receipts.get(number))
            case ["products", sku]:
                product = self.products.get(sku)
                if product is not None and request.method == "PATCH":
                    product |= body
                if request.method == "PUT":
                    product = self.products[sku] = {"store": "A", **body, "sku": sku}
                return show(product)
        return show(None)


class Erp(System):
    """An ERP with a login: it has items with a stock, some without our SKU, and takes sales orders."""

    def __init__(self, *, has_login: bool = True) -> None:
        super().__init__()
        self.has_login = has_login
        self.receipts: dict[str, dict[str, Any]] = {}
        self.items: dict[int, dict[str, Any]] = {}
        self.sales_orders: dict[str, dict[str, Any]] = {}
        self.tokens: set[str] = set()
        self.logins = 0

    def stock(self, number: int, sku: str | None, on_hand: int, **more: Any) -> None:
        """An item is made by hand."""
        self.items[number] = {
            "number": number,
            "sku": sku,
            "warehouse": "A",
            "on_hand": on_hand,
            "changed": self.step(),
            **more,
        }

    def book_receipt(self, number: int, quantity: int) -> dict[str, Any]:
        """Goods are received by hand; returns the item."""
        item = self.items[number]
        item["on_hand"] += quantity
        item["changed"] = self.step()
        return item

    def write_receipt(self, number: str, sku: str | None, quantity: int, status: str = "booked") -> None:
        """A receipt is written, or changed."""
        self.receipts[number] = {
            "number": number,
            "warehouse": "A",
            "sku": sku,
            "quantity": quantity,
            "status": status,
            "changed": self.step(),
        }

    def change(self, number: int, **fields: Any) -> dict[str, Any]:
        """An item is edited by hand; returns it."""
        self.items[number] |= {**fields, "changed": self.step()}
        return self.items[number]

    def webhook(self, item: dict[str, Any], delivery: str) -> tuple[bytes, dict[str, str]]:
        """The webhook that it sends for an item: body and headers."""
        body = json.dumps({"event": "item.changed", "item": item}).encode()
        signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        return body, {
            "Content-Type": "application/json",
            "X-ERP-Signature": f"sha256={signature}",
            "X-ERP-Delivery": delivery,
        }

    def respond(self, request: Request, body: Any) -> Response:
        """The response to one call."""
        path, query = request.url.path.strip("/").split("/"), request.query_params
        if path == ["login"]:
            self.logins += 1
            self.tokens.add(f"token-{self.logins}-of-the-erp")
            return JSONResponse({"token": f"token-{self.logins}-of-the-erp"})
        if self.has_login and request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return JSONResponse({"error": "log in"}, 401)
        match path:
            case ["warehouses"]:
                return JSONResponse({"warehouses": ["A"]})
            case ["receipts"]:
                rows = [row for row in self.receipts.values() if query.get("warehouse") in (None, row["warehouse"])]
                rows = [row for row in rows if row["changed"] >= int(query.get("changed_since", 0))]
                return JSONResponse({"receipts": rows})
            case ["item-count"]:
                rows = [row for row in self.items.values() if row["warehouse"] == query["warehouse"] and row["sku"]]
                return JSONResponse({"count": len(rows)})
            case ["items"]:
                rows = [row for row in self.items.values() if query.get("warehouse") in (None, row["warehouse"])]
                rows = [row for row in rows if query.get("sku") in (None, row["sku"])]
                rows = [row for row in rows if row["changed"] >= int(query.get("changed_since", 0))]
                return JSONResponse({"items": rows})
            case ["salesorders"] if request.method == "POST":
                number = f"SO-{len(self.sales_orders) + 1}"
                self.sales_orders[number] = {**body, "id": number}
                return JSONResponse(self.sales_orders[number], 201)
            case ["salesorders"]:
                rows = [row for row in self.sales_orders.values() if query.get("ref") in (None, row["ref"])]
                rows = [row for row in rows if query.get("warehouse") in (None, row["warehouse"])]
                return JSONResponse({"orders": rows})
            case ["salesorders", number] if request.method == "DELETE":
                return show(self.sales_orders.pop(number, None))
            case ["salesorders", number]:
                order = self.sales_orders.get(number)
                if order is not None and request.method == "PATCH":
                    order |= body
                return show(order)
        return show(None)


def show(row: dict[str, Any] | None) -> Response:
    """One record, or 404."""
    return JSONResponse({"error": "no such thing"}, 404) if row is None else JSONResponse(row)


class Story:
    """Both systems, and the system between them by a YAML of the cookbook page."""

    def __init__(self, engine: Engine, number: int = 1, **changes: Any) -> None:
        self.engine = engine
        self.platform, self.erp = Platform(), Erp(has_login=number == 1)
        texts = [text for language, text in fences("erp-story") if language == "yaml"]
        values = {
            "PLATFORM_URL": self.platform.url,
            "ERP_URL": self.erp.url,
            "ERP_PASSWORD": "a password",
            "ERP_WEBHOOK_SECRET": SECRET,
        }
        text = texts[number - 1]
        for name, value in values.items():
            text = text.replace(f"${{{name}}}", value)
        self.document = merge(parse_yaml(text), changes)
        self.config = parse_config(json.dumps(self.document), "sync.yaml")
        self.context = composition.open_context(engine, self.config)

    async def close(self) -> None:
        """Lets go of connections and servers."""
        await self.context.close()
        self.platform.server.stop()
        self.erp.server.stop()

    async def sync(self, entity: str) -> StepReport:
        """A full sync; returns what its second half came to."""
        _, stepped = await full_sync(self.context, self.context.entities[entity], "A", patience=5)
        return stepped

    async def poll(self, entity: str, part: str) -> None:
        """One poll, and what follows from it."""
        await poll(self.context, self.context.entities[entity], part, due_only=False)
        await self.drain()

    async def drain(self) -> None:
        """Works off what is due."""
        await drain(self.context, linger=0, most_seconds=30)

    async def validate(self, entity: str) -> GroupValidation:
        """A full comparison."""
        return await validate(self.context, self.context.entities[entity], "A", full=True)

    async def post(self, item: dict[str, Any], delivery: str) -> dict[str, Any]:
        """The ERP sends a webhook; returns the response."""
        body, headers = self.erp.webhook(item, delivery)
        async with client_of(service(self.engine, self.config), None) as client:
            response = await client.post("/v1/sources/erp/events", content=body, headers=headers)
        assert response.status_code == 202, response.text
        return dict(response.json())

    def query(self, statement: str, **parameters: Any) -> list[Any]:
        """The rows of a statement."""
        with self.engine.begin() as connection:
            return list(run(connection, statement, **parameters))

    def alerts(self) -> list[str]:
        """The open alerts."""
        return [row.title for row in self.query("SELECT title FROM sync.alerts WHERE resolved_at IS NULL")]
