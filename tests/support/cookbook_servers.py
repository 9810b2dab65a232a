"""The third parties of the cookbook: small real servers, each with the manners that its page tells of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

Fields = dict[str, Any]
Query = dict[str, str]
Headers = dict[str, str]


class ThirdParty:
    """Items by id; a subclass says by which calls they are reached. ``here``: of all the ids, those that are shown."""

    def __init__(self) -> None:
        self.items: dict[str, Fields] = {}
        self._number = 0

    async def __call__(self, request: Request) -> Response:
        content = await request.body()
        body = json.loads(content) if content else None
        raw = request.scope["raw_path"].decode().strip("/")
        path = [unquote(piece) for piece in raw.split("/")]
        return self.answer(request.method, path, dict(request.query_params), body, dict(request.headers))

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        match method, path:
            case "GET", ["items"]:
                return self.listed(self.found(query), query)
            case "GET", ["count"]:
                return JSONResponse({"count": len(self.found(query))})
            case "POST", ["items"]:
                return JSONResponse(self.make(body), 201)
            case _, ["items", item] if item in self.items:
                return self.one(method, item, body, headers)
        return self.missing()

    def one(self, method: str, item: str, body: Any, headers: Headers) -> Response:
        if method == "DELETE":
            return JSONResponse(self.items.pop(item))
        if method in ("PUT", "PATCH"):
            self.items[item] |= body
        return JSONResponse(self.items[item])

    def missing(self) -> Response:
        return JSONResponse({"error": "no such item"}, 404)

    def make(self, fields: Fields) -> Fields:
        self._number += 1
        made = {"id": f"i{self._number}", **fields}
        self.items[made["id"]] = made
        return made

    def found(self, query: dict[str, str]) -> list[Fields]:
        wanted = {name: query[name] for name in ("store", "code") if name in query}
        return [
            item for item in self.items.values() if all(str(item.get(name)) == text for name, text in wanted.items())
        ]

    def listed(self, items: list[Fields], query: dict[str, str]) -> Response:
        offset = int(query.get("offset", "0"))
        return JSONResponse(items[offset:][: int(query.get("limit", "1000"))])


class OurIds(ThirdParty):
    """An item's id is its code, and PUT makes what is missing."""

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        match method, path:
            case "PUT", ["items", code]:
                self.items[code] = body
                return JSONResponse(body)
        return super().answer(method, path, query, body, headers)


class PostElsePatch(ThirdParty):
    """POST refuses a code that is taken by 409; PATCH refuses one that is not there, by a 404 or an empty 204."""

    def __init__(self, empty: bool = False) -> None:
        super().__init__()
        self._empty = empty

    def make(self, fields: Fields) -> Fields:
        self.items[fields["code"]] = fields
        return fields

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        if (method, path) == ("POST", ["items"]) and body["code"] in self.items:
            return JSONResponse({"error": "it is there already"}, 409)
        if method == "PATCH" and path[1] not in self.items and self._empty:
            return Response(status_code=204)
        return super().answer(method, path, query, body, headers)


class Unique(ThirdParty):
    """A code that is taken is refused; a create whose Idempotency-Key is known is answered as the first one."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, Fields] = {}

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        if (method, path) == ("POST", ["items"]):
            key = headers["idempotency-key"]
            if key not in self._made:
                self._made[key] = self.make(body)
            return JSONResponse(self._made[key], 201)
        return super().answer(method, path, query, body, headers)


class BulkUpsert(OurIds):
    """``POST /items/upsert`` takes many and answers 207 with a result each, in no order."""

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        match method, path:
            case "POST", ["items", "upsert"]:
                return JSONResponse({"results": [self._one(item) for item in reversed(body["items"])]}, 207)
            case "POST", ["items", "delete"]:
                gone = [{"code": code, "status": 200 if self.items.pop(code, None) else 404} for code in body["codes"]]
                return JSONResponse({"results": gone}, 207)
        return super().answer(method, path, query, body, headers)

    def _one(self, item: Fields) -> Fields:
        if not item["code"]:
            return {"code": item["code"], "status": 422, "error": "no code"}
        self.items[item["code"]] = item
        return {"code": item["code"], "status": 200}


class AllOrNothing(OurIds):
    """``POST /items/import`` takes at most 20 items, all or none of them."""

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        if (method, path) == ("POST", ["items", "import"]):
            if len(body) > 20:
                return JSONResponse({"error": "too many items"}, 429)
            if any(item["name"] == "refused" for item in body):
                return JSONResponse({"error": "an item cannot be stored"}, 422)
            self.items |= {item["code"]: item for item in body}
            return JSONResponse({"imported": len(body)})
        return super().answer(method, path, query, body, headers)


class ETags(OurIds):
    """A write needs the present ETag, and answers 412 for another, 428 for none."""

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        if len(path) == 2 and path[1] in self.items:
            version = self.items[path[1]]["version"]
            if method != "GET" and (told := headers.get("if-match")) != f'"{version}"':
                return JSONResponse({"error": "fetch it first"}, 428 if told is None else 412)
            answer = super().answer(method, path, query, {**(body or {}), "version": version + 1}, headers)
            answer.headers["ETag"] = f'"{self.items.get(path[1], {"version": 0})["version"]}"'
            return answer
        return super().answer(method, path, query, {**(body or {}), "version": 1} if method == "PUT" else body, headers)


class Revisions(OurIds):
    """A document store: a write needs the present ``_rev`` in the body, and answers 409 for another."""

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        if len(path) == 2 and method in ("PUT", "DELETE"):
            present = self.items.get(path[1], {}).get("_rev")
            if (body or {}).get("_rev", query.get("rev")) != present:
                return JSONResponse({"error": "conflict"}, 409)
            body = {**(body or {}), "_rev": f"{int((present or '0').split('-')[0]) + 1}-x"}
        return super().answer(method, path, query, body, headers)


class Linked(ThirdParty):
    """Products, and their stock at an address of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stock: dict[str, int] = {}

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        match method, path:
            case "PUT", ["stock", item]:
                self.stock[item] = body["level"]
                return JSONResponse(body)
            case "GET", ["stock", item]:
                return JSONResponse({"level": self.stock[item]}) if item in self.stock else self.missing()
        if isinstance(body, dict):
            body.pop("stock", None)
        return super().answer(method, path, query, body, headers)


class LinkedByHalves(Linked):
    """The same, where a stock level has to be made before it can be set."""

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        match method, path:
            case "PUT", ["stock", item] if item not in self.stock:
                return self.missing()
            case "POST", ["stock"]:
                self.stock[body["item"]] = body["level"]
                return JSONResponse(body, 201)
            case "GET", ["stock"]:
                item = query["item"]
                return JSONResponse([{"item": item, "level": self.stock[item]}] if item in self.stock else [])
        return super().answer(method, path, query, body, headers)


class SoftDelete(OurIds):
    """A deleted item stays, with ``archived``; it is listed and counted no more."""

    def one(self, method: str, item: str, body: Any, headers: Headers) -> Response:
        if method == "DELETE":
            return JSONResponse({"error": "it is used by orders"}, 409)
        return super().one(method, item, body, headers)

    def found(self, query: dict[str, str]) -> list[Fields]:
        return [item for item in super().found(query) if not item.get("archived")]


class AllIs200(ThirdParty):
    """Every answer is a 200: ``{"ok": …, "data": …}`` or ``{"ok": false, "error": {"code", "message"}}``."""

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        if path == ["items"] and method == "POST" and any(item["code"] == body["code"] for item in self.items.values()):
            return JSONResponse({"ok": False, "error": {"code": "E_EXISTS", "message": "the code is taken"}})
        answer = super().answer(method, path, query, body, headers)
        told = json.loads(bytes(answer.body))
        if answer.status_code == 404:
            return JSONResponse({"ok": False, "error": {"code": "E_UNKNOWN", "message": "there is no such item"}})
        plain = path in (["items"], ["count"]) and method == "GET"
        return JSONResponse({"ok": True, "data": told if plain else [told]})


class Paged(OurIds):
    """Lists ten items a page at most, whatever is asked for, in the way that its page of the cookbook tells of."""

    most = 10

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def found(self, query: dict[str, str]) -> list[Fields]:
        return sorted(super().found(query), key=lambda item: str(item["code"]))

    def listed(self, items: list[Fields], query: dict[str, str]) -> Response:
        at, size = self._start(items, query), min(int(query.get("limit", self.most)), self.most)
        page, more = items[at : at + size], at + size < len(items)
        link = f"/items?store={query.get('store', '')}&from={at + size}"
        match self._kind:
            case "cursor":
                return JSONResponse({"items": page, "next": f"c{at + size}" if more else None})
            case "link":
                return JSONResponse(page, headers={"Link": f'<{link}>; rel="next"'} if more else {})
            case "next_url":
                return JSONResponse({"items": page, "paging": {"next": link if more else ""}})
            case "page" if at and at >= len(items):
                return JSONResponse({"error": "no such page"}, 404)
            case "total":
                return JSONResponse({"items": page, "total": len(items)})
        return JSONResponse(page)

    def _start(self, items: list[Fields], query: dict[str, str]) -> int:
        if "after" in query:
            return sum(str(item["code"]) <= query["after"] for item in items)
        if "start" in query:
            return sum(str(item["code"]) < query["start"] for item in items)
        if "page" in query:
            return (int(query["page"]) - 1) * self.most
        return int(re.sub(r"\D", "", query.get("cursor", query.get("from", query.get("offset", "0")))) or 0)


class Counted(OurIds):
    """Tells how many there are, by a header, a number in the body of no items, plain text, or an aggregate."""

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        number = len(self.found(query if body is None else body.get("filter", {})))
        match method, path:
            case "HEAD", ["items"]:
                return Response(headers={"X-Total-Count": str(number)})
            case "GET", ["items", "$count"]:
                return PlainTextResponse(str(number))
            case "GET", ["items"] if query.get("limit") == "0":
                return JSONResponse({"total": number, "items": []})
            case "POST", ["aggregate"]:
                return JSONResponse([{"_id": None, "n": number}] if number else [])
        return super().answer(method, path, query, body, headers)


class Doors(OurIds):
    """Lets in who shows what it asks for; a login's token is good for sixty calls, and its end is told inside a 200."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        self._left: dict[str, int] = {}

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        if self._kind == "login":
            if path == ["login"]:
                if body != {"user": "us", "password": "secret"}:
                    return JSONResponse({"error": "who are you?"}, 401)
                self._left[f"t{len(self._left)}"] = 60
                return JSONResponse({"session": f"t{len(self._left) - 1}"})
            shown = headers.get("x-session", "")
            if not self._left.get(shown):
                return JSONResponse({"error": {"code": "SESSION_EXPIRED"}})
            self._left[shown] -= 1
        wanted = {"basic": "Basic dXM6c2VjcmV0", "bearer": "Bearer secret"}
        if self._kind in wanted and headers.get("authorization") != wanted[self._kind]:
            return JSONResponse({"error": "who are you?"}, 401)
        if self._kind == "headers" and (headers.get("x-app"), headers.get("x-key")) != ("us", "secret"):
            return JSONResponse({"error": "who are you?"}, 401)
        return super().answer(method, path, query, body, headers)


class Busy(OurIds):
    """Every tenth write is one too many: 429 with the time to wait in its own words; good answers ask for a pause."""

    calls = 0

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        self.calls += 1
        if method == "GET" and self.calls % 10 == 0:
            return JSONResponse({"error": "slow down", "retry_in": 0.01}, 429)
        return super().answer(method, path, query, body, headers)


class Stores(ThirdParty):
    """Items belong to a store by the store's id, which ``GET /stores?code=`` tells."""

    stores = ("A", "B")

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        match method, path:
            case "GET", ["stores"]:
                return JSONResponse(
                    [
                        {"id": 100 + number, "code": code}
                        for number, code in enumerate(self.stores)
                        if code == query["code"]
                    ]
                )
            case "GET", ["stores", number, "items"]:
                items = [item for item in self.items.values() if str(item["store_id"]) == number]
                return self.listed(items, query)
        return super().answer(method, path, query, body, headers)


class Shapes(OurIds):
    """Shows values in another shape than it takes them in, and adds much of its own."""

    def one(self, method: str, item: str, body: Any, headers: Headers) -> Response:
        if method == "GET":
            return JSONResponse(self._shown(self.items[item]))
        return super().one(method, item, body, headers)

    def found(self, query: dict[str, str]) -> list[Fields]:
        return [self._shown(item) for item in super().found(query)]

    def _shown(self, item: Fields) -> Fields:
        assert item["active"] in (0, 1, None)
        assert isinstance(item["price"], int | None)
        name = item["name"] and item["name"]["de"]
        return {
            **item,
            "name": {"de": name, "en": None},
            "stock": {"level": item["stock"], "unit": "pcs"},
            "rating": 4.2,
            "updated": "today",
        }


class Tilde(OurIds):
    """Keys in paths are written with tildes, as Datasette does; in filters as OData does."""

    async def __call__(self, request: Request) -> Response:
        content = await request.body()
        body = json.loads(content) if content else None
        path = [
            re.sub("~([0-9A-F]{2})", r"%\1", piece).replace("+", " ")
            for piece in request.scope["raw_path"].decode().strip("/").split("/")
        ]
        query = dict(request.query_params)
        if match := re.fullmatch(r"(\w+) eq '(.*)'", query.pop("$filter", ""), re.DOTALL):
            query[match[1]] = match[2].replace("''", "'")
        return self.answer(request.method, [unquote(piece) for piece in path], query, body, dict(request.headers))


class Sources:
    """The internal systems of the cookbook: 45 products of two stores, and what a warehouse has of them."""

    def __init__(self) -> None:
        self.products: list[dict[str, Any]] = [
            {
                "sku": f"p{n:02}",
                "store": "AB"[n % 2],
                "name": f"product {n}",
                "archived": False,
                "updated_at": f"2026-01-01T00:00:{n:02}Z",
            }
            for n in range(45)
        ]
        self.levels = [
            {"article": product["sku"], "counter": n + 1, "level": n} for n, product in enumerate(self.products)
        ]

    async def __call__(self, request: Request) -> Response:
        query, path = dict(request.query_params), request.url.path.strip("/").split("/")
        keys, after = query.get("keys", query.get("articles")), query.get("after", "")
        of_store = [product for product in self.products if product["store"] == query.get("store", product["store"])]
        match path:
            case ["stores"]:
                return JSONResponse(["A", "B"])
            case ["count"]:
                return JSONResponse({"n": len(of_store)})
            case ["changes"]:
                return JSONResponse({"products": [p for p in self.products if p["updated_at"] >= query["since"][:19]]})
            case ["lookup"]:
                return JSONResponse({"products": [p for p in self.products if p["sku"] in str(keys).split(",")]})
            case ["products"]:
                return JSONResponse({"products": [p for p in of_store if p["sku"] > after][:20]})
            case ["warehouse", "levels"]:
                return JSONResponse(
                    [
                        level
                        for level in self.levels
                        if level["article"] > after and (keys is None or level["article"] in keys.split(","))
                    ][:20]
                )
            case ["products", key] | ["warehouse", "levels", key]:
                rows = self.products if path[0] == "products" else self.levels
                found = [row for row in rows if key in (row.get("sku"), row.get("article"))]
                return JSONResponse(found[0] if found else {"error": "no such thing"}, 200 if found else 404)
        return JSONResponse({"error": "no such thing"}, 404)


class OneAddress(ThirdParty):
    """All there is stands behind ``POST /graphql`` or ``POST /rpc``."""

    def answer(self, method: str, path: list[str], query: Query, body: Any, headers: Headers) -> Response:
        if path == ["graphql"]:
            name = re.search(r"{\s*(\w+)", body["query"])
            assert name is not None
            done = self._done(name[1], body["variables"])
            if done is None and name[1] != "item":
                return JSONResponse(
                    {"data": None, "errors": [{"message": "no such item", "extensions": {"code": "NOT_FOUND"}}]}
                )
            return JSONResponse({"data": {name[1]: done}})
        done = self._done(body["method"], body["params"])
        if done is None:
            error = {"code": -32004, "message": "no such item"}
            return JSONResponse({"jsonrpc": "2.0", "id": body["id"], "error": error})
        return JSONResponse({"jsonrpc": "2.0", "id": body["id"], "result": done})

    def _done(self, name: str, given: Fields) -> Any:
        if name in ("createItem", "items.create"):
            return self.make(given["item"])
        if name in ("items", "items.list"):
            items: Iterable[Fields] = self.found({k: v for k, v in given.items() if v is not None})
            return [item for item in items if item["id"] > (given.get("after") or "")][:100]
        if given["id"] not in self.items:
            return None
        if name in ("deleteItem", "items.delete"):
            return self.items.pop(given["id"])
        self.items[given["id"]] |= given.get("item") or {}
        return self.items[given["id"]]
