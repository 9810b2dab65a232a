"""Ways of deleting at third parties that differ."""

from __future__ import annotations

from typing import Any

from http_server import Server
from record_store import THEIRS, Store
from starlette.responses import JSONResponse

DELETES, POSTS, PATCHES = "DELETE items", "POST items", "PATCH items"


GONE: dict[str, Any] = {"gone_when": "deleted"}


SOFT: dict[str, Any] = {
    **GONE,
    "delete": {"method": "PATCH", "path": "/items/{{ id }}", "body": {"deleted": True}},
    "update": {**THEIRS["update"], "body": "{{ payload | plus(deleted=false) }}"},
}


CANCEL: dict[str, Any] = {
    "gone_when": "state == 'cancel'",
    "delete": {"method": "POST", "path": "/items/{{ id }}/cancel"},
}


DEACTIVATE: dict[str, Any] = {
    **GONE,
    "delete": {"path": "/items/{{ id }}", "refused": SOFT["delete"]},
}


def refusing(server: Server, status: int, **manners: Any) -> Store:
    store = Store(server, **manners)
    store.delete_refused = lambda request, item_id: JSONResponse({"error": "it has orders"}, status)
    return store
