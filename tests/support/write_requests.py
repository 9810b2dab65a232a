"""Requests that write records at third parties that differ."""

from __future__ import annotations

from typing import Any

from record_store import OURS, THEIRS

POST_ITEMS, PUT_ITEMS, PUT_STOCK = "POST items", "PUT items", "PUT stock"


PATCH: dict[str, Any] = {"method": "PATCH", "path": "/items/{{ key }}"}


CREATE_FIRST = {**OURS, "upsert": "create_first", "create": THEIRS["create"], "update": PATCH}


UPDATE_FIRST = {**CREATE_FIRST, "upsert": "update_first"}


STOCK: dict[str, Any] = {"method": "PUT", "path": "/stock/{{ answer.id }}", "body": {"level": "{{ payload.count }}"}}


PRODUCT = {"code": "{{ payload.code }}", "name": "{{ payload.name }}", "store": "{{ payload.store }}"}


LINKED: dict[str, Any] = {
    **THEIRS,
    "create": {"path": "/items", "body": PRODUCT, "then": [STOCK]},
    "update": {"method": "PUT", "path": "/items/{{ id }}", "body": PRODUCT, "then": [STOCK]},
    "also": {"stock": {"path": "/stock/{{ id }}"}},
    "fields": {"count": {"read": "stock.level"}},
}
