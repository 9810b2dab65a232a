"""Source systems and a third party in memory, with faults on command: what the core's tests talk to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from sync_orchestrator.config import Config
from sync_orchestrator.core.ports import Capabilities, Found, Item, OpenTransactions, PartRead, Ungrouped
from sync_orchestrator.errors import CallFailed, Failure


class FakeSource:
    """One entity's part in one source system: a dictionary with versions."""

    keyset_listing = True
    can_read = True
    can_poll = False
    can_list_keys = False
    read_many_size = 3
    confirms_absence = False

    def __init__(self, page: int = 100) -> None:
        self.rows: dict[str, PartRead] = {}
        self.down = False
        self.refusal: CallFailed | None = None
        self.page = page
        self.reads = 0
        self.version = 1_000_000
        self.open: OpenTransactions | None = None

    def put(self, key: str, data: dict[str, Any], *, group: str | None = None, version: int | None = None) -> PartRead:
        """Writes a record and returns it; its version grows by one unless told."""
        self.version = self.version + 1 if version is None else max(version, self.version)
        row = PartRead(key, self.version if version is None else version, data, group)
        self.rows[key] = row
        return row

    def remove(self, key: str) -> int:
        """Deletes a record and returns the version of its deletion."""
        self.version += 1
        self.rows.pop(key, None)
        return self.version

    async def read(self, key: str) -> PartRead | None:
        self.reads += 1
        self._answer()
        return self.rows.get(key)

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        self._answer()
        return [self.rows[key] for key in keys if key in self.rows]

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        position = after or ""
        while True:
            self._answer()
            keys = sorted(key for key, row in self.rows.items() if key > position and row.group in (group, None))
            if not keys[: self.page]:
                return
            position = keys[: self.page][-1]
            yield [self.rows[key] for key in keys[: self.page]], position

    async def keys(self, group: str) -> AsyncIterator[list[PartRead]]:
        async for rows, _ in self.pages(group):
            yield rows

    async def changes(self, since: int) -> AsyncIterator[list[PartRead]]:
        self._answer()
        rows = [row for row in self.rows.values() if row.version >= since]
        for start in range(0, len(rows), self.page):
            yield rows[start : start + self.page]

    async def open_transactions(self) -> OpenTransactions | None:
        return self.open

    async def count(self, group: str) -> int | None:
        return sum(1 for row in self.rows.values() if row.group in (group, None))

    async def groups(self) -> list[str] | None:
        return sorted({row.group for row in self.rows.values() if row.group})

    async def ungrouped(self) -> Ungrouped | None:
        return None

    async def close(self) -> None:
        return None

    def _answer(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        if self.down:
            raise CallFailed(Failure.TRANSIENT, "the source does not answer")


class FakeThirdParty:
    """A third party that gives its own ids, does not refuse duplicates, and fails as it is told."""

    def __init__(
        self,
        key_field: str = "code",
        group_field: str | None = "store",
        *,
        assigns_ids: bool = True,
        can_lookup: bool = True,
        idempotent_create: bool = False,
        group_in_address: bool = False,
    ) -> None:
        self.capabilities = Capabilities(assigns_ids, can_lookup, idempotent_create, group_in_address)
        self.store: dict[str, dict[str, Any]] = {}
        self.places: dict[str, str | None] = {}
        self.key_field = key_field
        self.group_field = group_field
        self.calls: Counter[str] = Counter()
        self.under_way: Counter[str] = Counter()
        self.most_under_way = 0
        self.before: Callable[[str, str], Exception | None] = lambda verb, key: None
        self.after: Callable[[str, str], Exception | None] = lambda verb, key: None
        self.gate: Callable[[str, str], Any] | None = None
        self._made: dict[str, str] = {}
        self._next = 0

    def of_key(self, key: str) -> list[dict[str, Any]]:
        """All records that carry this key."""
        return [record for record in self.store.values() if record.get(self.key_field) == key]

    def by_hand(self, fields: dict[str, Any], group: str | None = None) -> str:
        """A record that somebody made there."""
        self._next += 1
        external_id = f"id-{self._next}"
        self.store[external_id] = dict(fields)
        self.places[external_id] = group
        return external_id

    async def create(self, item: Item) -> str:
        if not self.capabilities.assigns_ids:
            await self.update(item)
            return item.key
        await self._enter("create", item.key)
        if self.capabilities.idempotent_create and item.idempotency_key in self._made:
            external_id = self._made[item.idempotency_key]
        else:
            external_id = self.by_hand(item.payload, item.group)
            if item.idempotency_key:
                self._made[item.idempotency_key] = external_id
        self._leave("create", item.key)
        return external_id

    async def update(self, item: Item) -> str | None:
        await self._enter("update", item.key)
        external_id = self._address(item)
        if self.capabilities.assigns_ids and external_id not in self.store:
            self._leave("update", item.key)
            return None
        self.store[external_id] = dict(item.payload)
        self.places[external_id] = item.group
        self._leave("update", item.key)
        return item.external_id if self.capabilities.assigns_ids else item.key

    async def delete(self, item: Item) -> None:
        await self._enter("delete", item.key)
        self.store.pop(self._address(item), None)
        self._leave("delete", item.key)

    async def read(self, item: Item) -> Found | None:
        await self._enter("read", item.key)
        self._leave("read", item.key)
        external_id = self._address(item)
        return self._found(external_id) if external_id in self.store else None

    async def account(self) -> str | None:
        return None

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        await self._enter("lookup", key)
        self._leave("lookup", key)
        return [
            self._found(external_id)
            for external_id, record in self.store.items()
            if record.get(self.key_field) == key
            and (not self.capabilities.group_in_address or self.places[external_id] == group)
        ]

    async def pages(self, group: str) -> AsyncIterator[list[Found]]:
        await self._enter("list", group)
        self._leave("list", group)
        yield [self._found(external_id) for external_id in list(self.store) if self._group(external_id) == group]

    async def count(self, group: str) -> int | None:
        await self._enter("count", group)
        self._leave("count", group)
        return sum(1 for external_id in self.store if self._group(external_id) == group)

    async def close(self) -> None:
        return None

    def _address(self, item: Item) -> str:
        if self.capabilities.assigns_ids:
            return item.external_id or ""
        return f"{item.group}/{item.key}" if self.capabilities.group_in_address else item.key

    def _group(self, external_id: str) -> str | None:
        record = self.store[external_id]
        return record.get(self.group_field) if self.group_field else self.places[external_id]

    def _found(self, external_id: str) -> Found:
        record = self.store[external_id]
        shown = external_id if self.capabilities.assigns_ids else record[self.key_field]
        return Found(record.get(self.key_field), shown, self._group(external_id), dict(record))

    async def _enter(self, verb: str, key: str) -> None:
        self.calls[verb] += 1
        writes = verb in ("create", "update", "delete")
        if writes:
            self.under_way[key] += 1
            self.most_under_way = max(self.most_under_way, self.under_way[key])
        try:
            if self.gate is not None:
                await self.gate(verb, key)
            else:
                await asyncio.sleep(0)
            if (error := self.before(verb, key)) is not None:
                raise error
        except BaseException:
            if writes:
                self.under_way[key] -= 1
            raise

    def _leave(self, verb: str, key: str) -> None:
        if verb in ("create", "update", "delete"):
            self.under_way[key] -= 1
        if (error := self.after(verb, key)) is not None:
            raise error


def lost_answer() -> CallFailed:
    return CallFailed(Failure.TRANSIENT, "no answer", unknown=True, about_system=True)


def answer(status: int) -> CallFailed:
    """The failure that an answer of this status is classed as."""
    kind = Failure.AUTH if status in (401, 403) else Failure.TRANSIENT if status >= 500 else Failure.PERMANENT
    return CallFailed(
        kind, f"answer {status}", status=status, unknown=status >= 500, about_system=status in (401, 403, 502, 503, 504)
    )


def two_part_config(**changes: Any) -> Config:
    """An entity ``item`` of an owner ``shop`` and a required part ``stock``, mirrored to ``erp``."""
    part = {"key": "key", "version": {"path": "v", "kind": "number"}, "list": {"path": "/"}}
    entity = {
        "owner": "shop",
        "parts": {"shop": {**part, "group": "store"}, "stock": part},
        "mapping": {"code": "key", "store": "group", "name": "shop.name", "count": "stock.count"},
        "retry": {"retries": 3, "first_wait": 10, "jitter": 0},
        "validation": {"confirm_after": 0},
        "source_check": {"confirm_after": 0},
        "third_party": {
            "system": "erp",
            "key_field": "code",
            "create": {"method": "POST", "path": "/"},
            "update": {"method": "PUT", "path": "/{{ id }}"},
            "delete": {"method": "DELETE", "path": "/{{ id }}"},
            "read": {"path": "/{{ id }}"},
            "list": {"path": "/"},
        },
        **changes.pop("entity", {}),
    }
    return Config.model_validate(
        {
            "sources": {
                name: {"base_url": "http://127.0.0.1:1", **changes.pop(name, {})} for name in ("shop", "stock")
            },
            "third_parties": {
                "erp": {
                    "base_url": "http://127.0.0.1:1",
                    "timeout": 5,
                    "search_lag": 0,
                    "breaker": {"failures": 5},
                    **changes.pop("system", {}),
                }
            },
            "entities": {"item": entity},
            "alerts": {"group_wait": 0},
            **changes,
        }
    )
