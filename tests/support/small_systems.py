"""A newcomer's two systems, small and real: a source that lists products by shop, a third party that keeps items."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

Handler = Callable[[Request], Awaitable[Response]]
Record = dict[str, Any]


def _page(request: Request, records: list[Record]) -> list[Record]:
    asked = request.query_params
    size = int(asked.get("limit", "100"))
    return records[(int(asked.get("page", "1")) - 1) * size :][:size]


class Backoffice:
    """``GET /shops``, ``GET /products?shop=&page=&limit=`` and ``GET /products/{sku}``, with a bearer token."""

    def __init__(self, products: list[Record], token: str = "source-secret") -> None:
        self.products = {record["sku"]: record for record in products}
        self.token = token
        self.ignores_filters = False

    async def __call__(self, request: Request) -> Response:
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return JSONResponse({"error": "no"}, 401)
        match request.scope["path"][1:].split("/", 1):
            case ["shops"]:
                return JSONResponse(sorted({record["shop"] for record in self.products.values()}))
            case ["products"]:
                shop = request.query_params.get("shop")
                found = [
                    record
                    for _, record in sorted(self.products.items())
                    if self.ignores_filters or record["shop"] == shop
                ]
                return JSONResponse({"products": _page(request, found)})
            case ["products", sku] if sku in self.products:
                return JSONResponse(self.products[sku])
        return JSONResponse({"error": "no such thing"}, 404)


class Partner:
    """``/items`` and ``/items/{id}``, whose ids are its own, with an API key; ``writes`` counts."""

    def __init__(self, token: str = "partner-secret") -> None:
        self.items: dict[str, Record] = {}
        self.writes = 0
        self.token = token
        self.ignores_filters = False

    async def __call__(self, request: Request) -> Response:
        if request.headers.get("X-Api-Key") != self.token:
            return JSONResponse({"error": "no"}, 401)
        self.writes += request.method != "GET"
        match request.method, request.url.path.strip("/").split("/"):
            case "GET", ["items"]:
                return JSONResponse({"data": _page(request, self._found(request))})
            case "POST", ["items"]:
                made = {"id": f"i{self.writes}", **await request.json()}
                self.items[made["id"]] = made
                return JSONResponse(made, 201)
            case method, ["items", number] if number in self.items:
                if method == "DELETE":
                    return JSONResponse(self.items.pop(number))
                if method == "PUT":
                    self.items[number] |= await request.json()
                return JSONResponse(self.items[number])
        return JSONResponse({"error": "no such thing"}, 404)

    def _found(self, request: Request) -> list[Record]:
        wanted = {name: request.query_params[name] for name in ("shop", "sku") if name in request.query_params}
        return [
            item
            for item in self.items.values()
            if self.ignores_filters or all(item.get(name) == value for name, value in wanted.items())
        ]


def products(count: int = 7) -> list[Record]:
    """Products of two shops."""
    return [
        {
            "sku": f"p{number}",
            "shop": "berlin" if number % 2 else "paris",
            "name": f"product {number}",
            "price": 100 * number,
            "updated_at": f"2025-11-2{number}T10:00:00Z",
        }
        for number in range(count)
    ]
