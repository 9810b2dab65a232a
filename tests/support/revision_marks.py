"""Ways in which third parties mark the revision that a write is meant for."""

from __future__ import annotations

from typing import Any

from http_server import Server
from record_store import THEIRS, Store
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

GETS, PUTS, DELETES = "GET items", "PUT items", "DELETE items"


IF_MATCH: dict[str, Any] = {
    "revision": {"header": "ETag"},
    "update": {**THEIRS["update"], "headers": {"If-Match": "{{ revision }}"}},
    "delete": {**THEIRS["delete"], "headers": {"If-Match": "{{ revision }}"}},
}


ETAG_IN_BODY: dict[str, Any] = {**IF_MATCH, "revision": {"path": "meta.etag"}}


REV: dict[str, Any] = {
    "revision": {"path": "_rev"},
    "update": {**THEIRS["update"], "body": "{{ payload | plus(_rev=revision) }}"},
    "delete": {**THEIRS["delete"], "params": {"rev": "{{ revision }}"}},
}


CHANGED_AT: dict[str, Any] = {
    "revision": {"path": "changed_at"},
    "update": {**THEIRS["update"], "body": {"changed_at": "{{ revision }}", "name": "{{ payload.name }}"}},
    "delete": {**THEIRS["delete"], "params": {"if_unchanged_since": "{{ revision }}"}},
}


def _etag(request: Request, body: Any) -> Any:
    return request.headers.get("if-match")


def _rev(request: Request, body: Any) -> Any:
    return (body or {}).get("_rev") or request.query_params.get("rev")


def _changed_at(request: Request, body: Any) -> Any:
    return (body or {}).get("changed_at") or request.query_params.get("if_unchanged_since")


def marks(kind: str, version: int) -> tuple[dict[str, str], dict[str, Any]]:
    """The headers and fields by which a server shows an item's revision."""
    match kind:
        case "etag":
            return {"ETag": f'W/"{version}"'}, {}
        case "etag in body":
            return {}, {"meta": {"etag": f'"{version}"'}}
        case "rev":
            return {}, {"_rev": f"{version}-abc"}
    return {}, {"changed_at": f"2024-05-01T10:00:0{version}Z"}


SENT = {"etag": _etag, "etag in body": _etag, "rev": _rev, "changed at": _changed_at}


ASKED = {"etag": IF_MATCH, "etag in body": ETAG_IN_BODY, "rev": REV, "changed at": CHANGED_AT}


def guarded(
    server: Server, kind: str = "etag", *, stale: int = 412, without: int | None = 428, **manners: Any
) -> Store:
    """A server that compares revisions: ``stale`` is its answer to an old one, ``without`` that to none."""
    store = Store(server, **manners)
    sent = SENT[kind]

    def shown(item: dict[str, Any]) -> Response:
        headers, fields = marks(kind, item["v"])
        return JSONResponse({**item, **fields}, headers=headers)

    def precondition(request: Request, body: Any, item: dict[str, Any]) -> Response | None:
        revision = sent(request, body)
        headers, fields = marks(kind, item["v"])
        now = next(iter({**headers, **fields.pop("meta", {}), **fields}.values()))
        if not revision:
            return None if without is None else JSONResponse({"error": "which revision?"}, without)
        return None if revision == now else JSONResponse({"error": "it has moved on"}, stale)

    store.shown, store.precondition = shown, precondition
    return store
