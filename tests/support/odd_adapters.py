"""Classes as somebody writes them: a good third party and a good source in memory, and what can be wrong with such."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar, cast

import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from sync_orchestrator.adapters.custom.base import Given, SourceAdapter, ThirdPartyAdapter
from sync_orchestrator.core.ports import Capabilities, Found, Item, PartRead

Misbehaviour = Callable[[], Any]


class ShelfSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    collection: str = "things"
    password: SecretStr = SecretStr("")
    most: int = 3


class Shelf(ThirdPartyAdapter):
    """Keeps records in memory, by collection. ``instead`` is what a method does in place of its work."""

    Settings = ShelfSettings
    capabilities = Capabilities(assigns_ids=True, can_lookup=True, idempotent_create=False, group_in_address=False)
    settings: ShelfSettings
    kept: ClassVar[dict[str, dict[str, dict[str, Any]]]] = {}
    instead: ClassVar[dict[str, Misbehaviour]] = {}

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self.records = self.kept.setdefault(self.settings.collection, {})

    async def create(self, item: Item) -> str:
        if "create" in self.instead:
            return cast("str", await _made(self.instead["create"]))
        external_id = f"s{len(self.records) + 1}"
        self.records[external_id] = dict(item.payload)
        return external_id

    async def update(self, item: Item) -> str | None:
        if "update" in self.instead:
            return cast("str | None", await _made(self.instead["update"]))
        if item.external_id not in self.records:
            return None
        self.records[item.external_id] = dict(item.payload)
        return item.external_id

    async def delete(self, item: Item) -> None:
        if "delete" in self.instead:
            return cast(None, await _made(self.instead["delete"]))
        self.records.pop(item.external_id or "", None)
        return None

    async def read(self, item: Item) -> Found | None:
        if "read" in self.instead:
            return cast("Found | None", await _made(self.instead["read"]))
        return self._found(item.external_id) if item.external_id in self.records else None

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        if "lookup" in self.instead:
            return cast("list[Found]", await _made(self.instead["lookup"]))
        return [self._found(each) for each, record in self.records.items() if record[self.key_field] == key]

    async def pages(self, group: str) -> AsyncIterator[list[Found]]:
        ids = [each for each, record in self.records.items() if record["store"] == group]
        for start in range(0, len(ids), self.settings.most):
            if "pages" in self.instead:
                yield await _made(self.instead["pages"])
            yield [self._found(each) for each in ids[start : start + self.settings.most]]

    async def count(self, group: str) -> int | None:
        if "count" in self.instead:
            return cast("int | None", await _made(self.instead["count"]))
        return len([record for record in self.records.values() if record["store"] == group])

    def _found(self, external_id: str) -> Found:
        record = self.records[external_id]
        return Found(record[self.key_field], external_id, record["store"], dict(record))


class Drawer(SourceAdapter):
    """Rows in memory; nothing but a listing."""

    rows: ClassVar[list[dict[str, Any]]] = []

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        yield [self.part_of(row) for row in self.rows if row["store"] == group], None

    async def groups(self) -> list[str] | None:
        return sorted({row["store"] for row in self.rows})


class ReadableDrawer(Drawer):
    async def read(self, key: str) -> PartRead | None:
        return next((self.part_of(row) for row in self.rows if row["key"] == key), None)


async def _made(misbehaviour: Misbehaviour) -> Any:
    came = misbehaviour()
    return await came if asyncio.iscoroutine(came) else came


def class_document(adapter: str = "odd_adapters:Shelf", **changes: Any) -> dict[str, Any]:
    """An entity whose source and third party are classes."""
    entity = {
        "owner": "shop",
        "parts": {"shop": {"key": "key", "group": "store", "version": {"path": "v", "kind": "number"}}},
        "mapping": {"code": "key", "store": "group", "name": "shop.name"},
        "retry": {"retries": 1, "first_wait": 0},
        "third_party": {"system": "erp", "key_field": "code", **changes.pop("third_party", {})},
        "validation": {"confirm_after": 0},
    }
    return {
        "sources": {"shop": {"kind": "class", "adapter": "odd_adapters:Drawer", **changes.pop("source", {})}},
        "third_parties": {
            "erp": {
                "adapter": adapter,
                "search_lag": 0,
                "in_flight_window": 0,
                "timeout": 5,
                **changes.pop("system", {}),
            }
        },
        "entities": {"item": entity},
        "alerts": {"group_wait": 0},
        **changes,
    }


@pytest.fixture(autouse=True)
def empty_shelves() -> Iterator[None]:
    """Empties what the classes keep, after each test of a module that imports this."""
    yield
    Shelf.kept.clear()
    Shelf.instead.clear()
    Drawer.rows.clear()
