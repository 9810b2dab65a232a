"""The third party: an ERP with an API of its own shape that gives its own ids, is slow, and misbehaves on command.

``python -m demo.erp``. The API is below ``/api/v2``; below ``/_control`` faults are switched on, and the store itself
is seen and damaged. Faults never touch ``/_control``.
"""

from __future__ import annotations

import bisect
from collections import Counter

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from demo import access
from demo.erp_faults import CuttableProtocol, FaultOrder, Faults, Misbehaving
from demo.erp_store import Damage, NoSuchRecord, Record, Store, TooFew

_MOST_ITEMS = 500


class Item(BaseModel):
    """What the ERP insists on in an item; further fields are kept as they come."""

    model_config = ConfigDict(extra="allow")

    itemCode: str = Field(min_length=1)
    warehouse: str = Field(min_length=1)
    unitPrice: int | float | None = Field(default=None, ge=0)


class Envelope(BaseModel):
    item: Item


class ByHand(BaseModel):
    """So many records that people make in a warehouse."""

    model_config = ConfigDict(extra="forbid")

    warehouse: str = Field(min_length=1)
    count: int = Field(default=3, ge=1)


class Page(BaseModel):
    """How a listing is asked for."""

    cursor: str = ""
    limit: int = Field(default=200, ge=1, le=_MOST_ITEMS)


def create_app(key: str) -> Starlette:
    """The ERP's API over an empty store."""
    erp = Erp()
    control = Control(erp)
    return Starlette(
        routes=[
            Route("/api/v2/items", erp.list_items),
            Route("/api/v2/items", erp.create, methods=["POST"]),
            Route("/api/v2/items/{ref}", erp.read),
            Route("/api/v2/items/{ref}", erp.update, methods=["PUT"]),
            Route("/api/v2/items/{ref}", erp.delete, methods=["DELETE"]),
            Route("/api/v2/warehouses/{warehouse}/count", erp.count),
            Route("/healthz", control.healthz),
            Route("/_control/faults", control.faults),
            Route("/_control/faults", control.set_faults, methods=["POST"]),
            Route("/_control/damage", control.damage, methods=["POST"]),
            Route("/_control/by_hand", control.by_hand, methods=["POST"]),
            Route("/_control/dump", control.dump),
            Route("/_control/stats", control.stats),
            Route("/_control/reset", control.reset, methods=["POST"]),
            Route("/_control/restore", control.restore, methods=["POST"]),
        ],
        middleware=[
            Middleware(access.RequiresHeader, "X-Api-Key", key, "/api/"),
            Middleware(Misbehaving, erp.faults),
        ],
        exception_handlers={ValidationError: _unprocessable, NoSuchRecord: _not_found, TooFew: _too_few},
    )


class Erp:
    """The API that customers of the ERP use."""

    def __init__(self) -> None:
        self.store = Store()
        self.faults = Faults()
        self.applied: Counter[str] = Counter()

    async def create(self, request: Request) -> Response:
        record = self.store.create(await _item(request))
        self.applied["create"] += 1
        return JSONResponse({"data": record}, 201)

    async def read(self, request: Request) -> Response:
        return JSONResponse({"data": self.store.read(request.path_params["ref"])})

    async def update(self, request: Request) -> Response:
        record = self.store.update(request.path_params["ref"], await _item(request))
        self.applied["update"] += 1
        return JSONResponse({"data": record})

    async def delete(self, request: Request) -> Response:
        self.store.delete(request.path_params["ref"])
        self.applied["delete"] += 1
        return Response(status_code=204)

    async def list_items(self, request: Request) -> Response:
        """A page of a warehouse, or of the items with an item code."""
        page = Page.model_validate(dict(request.query_params))
        if code := request.query_params.get("itemCode"):
            return self._page(self.store.refs_of_code(code), page)
        if warehouse := request.query_params.get("warehouse"):
            return self._page(self.store.refs_of_warehouse(warehouse), page)
        return JSONResponse({"fault": "name a warehouse or an itemCode"}, 400)

    async def count(self, request: Request) -> Response:
        return JSONResponse({"total": len(self.store.refs_of_warehouse(request.path_params["warehouse"]))})

    def _page(self, refs: list[str], page: Page) -> Response:
        start = bisect.bisect_right(refs, page.cursor)
        chosen = refs[start : start + page.limit]
        following = chosen[-1] if start + page.limit < len(refs) else None
        items = [self.store.records[ref] for ref in chosen]
        return JSONResponse({"data": {"items": items, "nextCursor": following}, "total": len(refs)})


class Control:
    """What the story does to the ERP and sees of it, past its API."""

    def __init__(self, erp: Erp) -> None:
        self._erp = erp

    async def faults(self, request: Request) -> Response:
        return JSONResponse(self._erp.faults.shown())

    async def set_faults(self, request: Request) -> Response:
        self._erp.faults.set(FaultOrder.model_validate_json(await request.body()))
        return await self.faults(request)

    async def damage(self, request: Request) -> Response:
        return JSONResponse(self._erp.store.damage(Damage.model_validate_json(await request.body())))

    async def by_hand(self, request: Request) -> Response:
        order = ByHand.model_validate_json(await request.body())
        return JSONResponse(self._erp.store.make_by_hand(order.warehouse, order.count))

    async def dump(self, request: Request) -> Response:
        return JSONResponse(list(self._erp.store.records.values()))

    async def stats(self, request: Request) -> Response:
        erp = self._erp
        return JSONResponse(
            {
                "calls": erp.faults.calls,
                "applied": erp.applied,
                "faults": erp.faults.struck,
                "records": len(erp.store.records),
                "duplicates": erp.store.duplicates(),
            }
        )

    async def reset(self, request: Request) -> Response:
        """An empty ERP without faults."""
        self._erp.store = Store()
        self._erp.faults.reset()
        self._erp.applied.clear()
        return JSONResponse({})

    async def restore(self, request: Request) -> Response:
        """Holds what an earlier dump held."""
        self._erp.store.restore(await request.json())
        return JSONResponse({"records": len(self._erp.store.records)})

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})


async def _item(request: Request) -> Record:
    return Envelope.model_validate_json(await request.body()).item.model_dump(exclude_unset=True)


async def _unprocessable(request: Request, error: Exception) -> Response:
    return JSONResponse({"fault": str(error)}, 422)


async def _not_found(request: Request, error: Exception) -> Response:
    return JSONResponse({"fault": str(error)}, 404)


async def _too_few(request: Request, error: Exception) -> Response:
    return JSONResponse({"fault": str(error)}, 409)


def main() -> None:
    uvicorn.run(
        create_app(access.erp_key()),
        host="127.0.0.1",
        port=access.port("erp"),
        http=CuttableProtocol,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
