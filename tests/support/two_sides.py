"""Two systems in which people change the same records, in memory, and the system between them on a real database.

Each system is a source and a third party. It refuses to write over what is not as it was last seen, as an API with
revisions does. Calls can get lost, land late, be refused, and reads can show an older state.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from mortals import Killed, Mortal
from sqlalchemy import Engine, event

from sync_orchestrator.composition import build_context
from sync_orchestrator.config import Config, parse_config
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.ports import Capabilities, Found, Item, OpenTransactions, PartRead, Ungrouped
from sync_orchestrator.core.validation.validate import GroupValidation, validate
from sync_orchestrator.core.values.mapping import Mapping as PayloadMapping
from sync_orchestrator.core.values.shared_fields import check_guard
from sync_orchestrator.errors import CallFailed, CannotPlan, DeletionsHeld, Failure, GroupBusy, Refusal

GROUP = "A"

CONFIG: dict[str, Any] = {
    "sources": {"shop": {"same_as": "shop"}, "erp": {"same_as": "erp"}},
    "third_parties": {
        name: {"base_url": f"http://127.0.0.1:9/{name}", "timeout": 10, "search_lag": 0} for name in ("shop", "erp")
    },
    "entities": {},
}


def _entity(owner: str, system: str, *, keys: str) -> dict[str, Any]:
    collection = f"/{system}/items"
    mapping = {"sku": "agreed.sku", "title": "agreed.title", "note": "agreed.note", "price": "agreed.price"}
    if keys == "same":
        mapping["sku"] = "key"
    else:
        mapping["ref"] = "key"
    calls: dict[str, Any] = {
        "create": {"method": "POST", "path": collection},
        "update": {"method": "PATCH", "path": f"{collection}/{{{{ id }}}}"},
        "delete": {"method": "DELETE", "path": f"{collection}/{{{{ id }}}}"},
        "read": {"path": f"{collection}/{{{{ id }}}}"},
        "list": {"path": collection, "params": {"group": "{{ group }}"}},
        "lookup": {"path": collection, "params": {"key": "{{ key }}"}},
    }
    if keys == "ids":
        calls["find_same"] = {"path": collection, "params": {"sku": "{{ payload.sku }}"}}
    return {
        "owner": owner,
        "parts": {
            owner: {
                "key": "sku" if keys == "same" else "id",
                "version": {"path": "at", "kind": "time"},
                "group": "store",
                "list": {"path": f"/{owner}/items", "params": {"store": "{{ group }}"}},
                "read": {"path": f"/{owner}/items/{{{{ key }}}}"},
            }
        },
        "mapping": mapping,
        "third_party": {
            "system": system,
            "key_field": "sku" if keys == "same" else "ref",
            "search_first": True,
            **calls,
        },
        "retry": {"first_wait": 1, "jitter": 0},
        "absent_after": 60,
        "validation": {"confirm_after": 0},
    }


def build_document(*, keys: str = "same", **two_way: Any) -> dict[str, Any]:
    """The configuration of a shop and an ERP whose products are the same.

    Args:
        keys: ``same`` or ``ids``.
        two_way: What else is said of ``two_way``; ``fields`` by default has one field for each policy.
    """
    shared = {
        name: {"ours": f"shop.{name}", "theirs": f"erp.{name}", "policy": policy}
        for name, policy in {"title": "ours", "note": "newest", "price": "ask"}.items()
    }
    if keys == "ids":
        shared["sku"] = {"ours": "shop.sku", "theirs": "erp.sku", "policy": "ours"}
    product, back = _entity("shop", "erp", keys=keys), _entity("erp", "shop", keys=keys)
    product["two_way"] = {
        "back": "product_back",
        "keys": keys,
        "fields": shared,
        "match": {} if keys == "same" else {"sku": {"ours": "shop.sku", "theirs": "erp.sku"}},
        "deletes": {"ours": "follow", "theirs": "follow"},
        **two_way,
    }
    return {**CONFIG, "entities": {"product": product, "product_back": back}}


@dataclass(slots=True)
class Row:
    """A record of a system; ``at`` is when it was changed, in microseconds since 1970."""

    id: str
    fields: dict[str, Any]
    at: int


@dataclass(slots=True)
class Late:
    """A write whose response got lost and that has not landed yet."""

    land: Callable[[], None]


Fault = Literal["lost_before", "lost_after", "late", "down", "refused", "slow"]


class Book:
    """A system with records that people and other systems change.

    ``faults`` are taken by the next writes, one each. ``stale`` is how many of the next reads of one record show the
    state before its last change. ``writes`` counts what was carried out for others.
    """

    def __init__(self, name: str, clock: Iterator[int]) -> None:
        self.name = name
        self.rows: dict[str, Row] = {}
        self.before: dict[str, Row | None] = {}
        self.faults: list[Fault] = []
        self.stale = 0
        self.late: list[Late] = []
        self.is_down = False
        self.writes = 0
        self.reads = 0
        self.notify: Callable[[str, Row | None], None] = lambda row_id, row: None
        self._clock = clock
        self._ids = itertools.count(1)

    # People ----------------------------------------------------------------------------------------------------------

    def add(self, **fields: Any) -> Row:
        """A person makes a record."""
        row = self._make(fields)
        self.notify(row.id, row)
        return row

    def edit(self, row_id: str, **fields: Any) -> Row:
        """A person changes fields of a record."""
        self._change(row_id, fields)
        self.notify(row_id, self.rows[row_id])
        return self.rows[row_id]

    def remove(self, row_id: str) -> None:
        """A person deletes a record."""
        self._delete(row_id)
        self.notify(row_id, None)

    def find(self, sku: str) -> Row:
        """The record with an article number."""
        (row,) = [row for row in self.rows.values() if row.fields.get("sku") == sku]
        return row

    def values(self, *names: str) -> dict[str, tuple[Any, ...]]:
        """By article number, some fields of all records."""
        return {row.fields["sku"]: tuple(row.fields.get(name) for name in names) for row in self.rows.values()}

    # Other systems ---------------------------------------------------------------------------------------------------

    def write(self, change: Callable[[], Any]) -> Any:
        """Carries out a write, or the fault that is next."""
        if self.is_down:
            raise CallFailed(Failure.TRANSIENT, "down", unknown=False, status=503)
        fault = self.faults.pop(0) if self.faults else None
        if fault == "down":
            raise CallFailed(Failure.TRANSIENT, "down", status=503)
        if fault == "refused":
            raise CallFailed(Failure.PERMANENT, "refused", status=422)
        if fault == "lost_before":
            raise CallFailed(Failure.TRANSIENT, "no response", unknown=True)
        if fault == "late":

            def land() -> None:
                try:
                    change()
                    self.writes += 1
                except CallFailed:
                    pass

            self.late.append(Late(land))
            raise CallFailed(Failure.TRANSIENT, "no response", unknown=True)
        done = change()
        self.writes += 1
        if fault == "lost_after":
            raise CallFailed(Failure.TRANSIENT, "no response", unknown=True)
        return done

    def land(self) -> None:
        """A late write lands."""
        if self.late:
            self.late.pop(0).land()

    def read(self, row_id: str) -> Row | None:
        """A record as a read shows it, which may be the state before its last change."""
        self.reads += 1
        if self.is_down:
            raise CallFailed(Failure.TRANSIENT, "down", status=503)
        row = self.rows.get(row_id)
        if self.stale and row_id in self.before:
            self.stale -= 1
            return self.before[row_id]
        return row

    def list_rows(self) -> list[Row]:
        """All records."""
        self.reads += 1
        if self.is_down:
            raise CallFailed(Failure.TRANSIENT, "down", status=503)
        return sorted(self.rows.values(), key=lambda row: row.id)

    def _make(self, fields: Mapping[str, Any]) -> Row:
        row = Row(f"{self.name}-{next(self._ids)}", {"store": GROUP, **fields}, next(self._clock))
        self.rows[row.id] = row
        self.before[row.id] = None
        return row

    def _change(self, row_id: str, fields: Mapping[str, Any]) -> None:
        row = self.rows[row_id]
        self.before[row_id] = row
        self.rows[row_id] = Row(row_id, {**row.fields, **fields}, next(self._clock))

    def _delete(self, row_id: str) -> None:
        self.before[row_id] = self.rows.pop(row_id)


class BookSource:
    """A system as a source of records."""

    keyset_listing = True
    can_read = True
    can_poll = False
    can_list_keys = False
    read_many_size = 1
    confirms_absence = True

    def __init__(self, book: Book, *, by_sku: bool) -> None:
        self._book = book
        self._by_sku = by_sku

    def _part(self, row: Row) -> PartRead:
        key = row.fields["sku"] if self._by_sku else row.id
        return PartRead(str(key), row.at, {"id": row.id, **row.fields}, GROUP)

    async def read(self, key: str) -> PartRead | None:
        if self._by_sku:
            ids = [row_id for row_id, row in self._book.rows.items() if row.fields.get("sku") == key]
            row_id = (
                ids[0]
                if ids
                else next(
                    (row_id for row_id, old in self._book.before.items() if old and old.fields.get("sku") == key),
                    "none",
                )
            )
        else:
            row_id = key
        row = self._book.read(row_id)
        return None if row is None else self._part(row)

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        return [part for key in keys if (part := await self.read(key)) is not None]

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        yield [self._part(row) for row in self._book.list_rows()], None

    async def keys(self, group: str) -> AsyncIterator[list[PartRead]]:
        raise AssertionError("keys are not listed")
        yield []

    async def changes(self, since: int) -> AsyncIterator[list[PartRead]]:
        raise AssertionError("it is not polled")
        yield []

    async def open_transactions(self) -> OpenTransactions | None:
        return None

    async def count(self, group: str) -> int | None:
        return len(self._book.list_rows())

    async def groups(self) -> list[str] | None:
        return [GROUP]

    async def ungrouped(self) -> Ungrouped | None:
        return None

    async def close(self) -> None:
        pass


class BookTarget:
    """A system as a third party, which checks what a record shows before it writes it."""

    def __init__(self, book: Book, mapping: PayloadMapping, key_field: str, *, can_find_same: bool) -> None:
        self._book = book
        self._mapping = mapping
        self._key_field = key_field
        self.capabilities = Capabilities(
            assigns_ids=True,
            can_lookup=True,
            idempotent_create=False,
            group_in_address=False,
            search_first=True,
            reads_before=("update", "delete"),
            can_find_same=can_find_same,
        )

    def _found(self, row: Row) -> Found:
        key = row.fields.get(self._key_field)
        return Found(
            None if key is None else str(key),
            row.id,
            GROUP,
            {name: row.fields.get(name) for name in self._mapping.fields},
        )

    def _guarded(self, item: Item) -> Row | None:
        row = self._book.rows.get(item.external_id or "")
        if row is None:
            return None
        if item.guard is not None:
            check_guard(self._mapping, item.guard, self._found(row).fields)
        return row

    async def create(self, item: Item) -> str:
        await asyncio.sleep(0)
        return str(self._book.write(lambda: self._book._make(item.payload).id))

    async def update(self, item: Item) -> str | None:
        await asyncio.sleep(0)
        unchanged = item.guard.unchanged if item.guard is not None else frozenset()
        fields = {name: value for name, value in item.payload.items() if name not in unchanged}

        def change() -> str | None:
            row = self._guarded(item)
            if row is None:
                return None
            self._book._change(row.id, fields)
            return row.id

        if self._guarded(item) is None:  # an API says so before it does anything
            return None
        done = self._book.write(change)
        return None if done is None else str(done)

    async def delete(self, item: Item) -> None:
        await asyncio.sleep(0)

        def change() -> None:
            row = self._guarded(item)
            if row is None:
                raise CallFailed(Failure.PERMANENT, "no such record", refusal=Refusal.MISSING, status=404)
            self._book._delete(row.id)

        if self._guarded(item) is None:
            return
        self._book.write(change)

    async def read(self, item: Item) -> Found | None:
        row = self._book.read(item.external_id or "")
        return None if row is None else self._found(row)

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        return [self._found(row) for row in self._book.list_rows() if self._found(row).key == key]

    async def find_same(self, item: Item) -> list[Found]:
        return [self._found(row) for row in self._book.list_rows() if row.fields["sku"] == item.payload["sku"]]

    async def pages(self, group: str) -> AsyncIterator[list[Found]]:
        yield [self._found(row) for row in self._book.list_rows()]

    async def count(self, group: str) -> int | None:
        return len(self._book.list_rows())

    async def account(self) -> str | None:
        return None

    async def close(self) -> None:
        pass


@dataclass
class TwoSides(Mortal):
    """Both systems and the system between them; its clock can be moved."""

    engine: Engine
    document: dict[str, Any] = field(default_factory=build_document)
    clock_offset_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.config: Config = parse_config(json.dumps(self.document), "sync.yaml")
        clock = itertools.count(1_700_000_000_000_000, 10_000_000)
        self.shop, self.erp = Book("shop", clock), Book("erp", clock)
        self._events = itertools.count(1)
        self.is_by_sku = self.config.entities["product"].two_way.keys == "same"  # type: ignore[union-attr]
        self.shop.notify = lambda row_id, row: self.tell("shop", "product", self.shop, row_id)
        self.erp.notify = lambda row_id, row: self.tell("erp", "product_back", self.erp, row_id)
        event.listen(self.engine, "begin", self._set_clock)
        self.context: Context = self.assemble_context()

    def assemble_context(self) -> Context:
        """The system between both, put together."""
        from sync_orchestrator.composition import mapping_of

        sides = {"product": (self.shop, self.erp), "product_back": (self.erp, self.shop)}
        sources: dict[str, dict[str, Any]] = {}
        targets: dict[str, Any] = {}
        for name, (own, other) in sides.items():
            entity = self.config.entities[name]
            sources[name] = {entity.owner: BookSource(own, by_sku=self.is_by_sku)}
            targets[name] = BookTarget(
                other, mapping_of(entity), entity.third_party.key_field, can_find_same=not self.is_by_sku
            )
        return build_context(self.engine, self.config, sources, targets)

    def _set_clock(self, connection: Any) -> None:
        if self.is_dead:
            raise Killed
        connection.exec_driver_sql(f"SET sync.clock_offset = '{self.clock_offset_seconds} s'")

    def close(self) -> None:
        """Lets go of the engine's clock."""
        if event.contains(self.engine, "begin", self._set_clock):
            event.remove(self.engine, "begin", self._set_clock)

    def entity(self, name: str) -> EntityContext:
        """One of the two entities."""
        return self.context.entities[name]

    def tell(self, source: str, entity: str, book: Book, row_id: str) -> None:
        """A notification of a record."""
        row = book.rows.get(row_id) or book.before.get(row_id)
        assert row is not None
        key = str(row.fields["sku"]) if self.is_by_sku else row_id
        action: Any = "update" if row_id in book.rows else "delete"
        number = next(self._events)
        record_events(
            self.engine,
            [
                ChangeEvent(
                    source, f"{source}-{number}", entity, key, "create" if action == "update" else action, row.at
                )
            ],
        )

    @staticmethod
    def attempt(work: Callable[[], object]) -> None:
        """Does what may be refused or fail without harm."""
        with suppress(GroupBusy, DeletionsHeld, CannotPlan, CallFailed):
            work()

    async def sync(self) -> None:
        """A full sync of both, as when going live."""
        for name in ("product", "product_back"):
            await full_sync(self.context, self.entity(name), GROUP, patience=0.3)
        await self.drain()

    async def drain(self, rounds: int = 1) -> None:
        """Works off what is due."""
        for _ in range(rounds):
            await drain(self.context, linger=0, most_seconds=30)

    async def settle(self, rounds: int = 12) -> None:
        """Lets time pass until nothing is left to do."""
        self.context = self.assemble_context()  # what was looked up is looked up again after a second by its clock
        for _ in range(rounds):
            await self.drain()
            self.clock_offset_seconds += 45
        await self.drain()

    async def validate(self, name: str) -> GroupValidation:
        """A full comparison of one direction."""
        return await validate(self.context, self.entity(name), GROUP, full=True)

    def query(self, statement: str, **parameters: Any) -> list[Any]:
        """The rows of a statement."""
        with self.engine.begin() as connection:
            return list(run(connection, statement, **parameters))

    @property
    def writes(self) -> int:
        """How many writes both systems have carried out for others."""
        return self.shop.writes + self.erp.writes
