"""Items of a source that are no records (``only_when`` of a part): gone where the record is known, else nothing.

A record that does not meet the condition any more is gone from its source. What is archived decides which of the two
an item is, so it is told here, for every read, listing and poll, whatever the adapter.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from sync_orchestrator.core.archive import queries
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.ports import OpenTransactions, PartRead, SourceSystem, Ungrouped

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


def list_known_keys(connection: Connection, entity: str, part: str, keys: Collection[str]) -> set[str]:
    """The keys of which the archive has the part, and not as deleted."""
    if not keys:
        return set()
    rows = run(connection, queries.SELECT_LIVE_PARTS, entity=entity, part=part, keys=sorted(keys))
    return {row.key for row in rows}


class SelectedSource:
    """A source system of which only some items are records.

    Implements ``core.ports.SourceSystem``. What is passed over is a deletion where the archive has the part. Where it
    has not, listings, polls and reads of many leave it out. A read of one record shows it, so that an event of it is
    not taken for one whose record is still to come. Without a database (``engine`` None) no record is known.
    """

    def __init__(self, inner: SourceSystem, engine: Engine | None, entity: str, part: str) -> None:
        self.inner = inner
        self._engine = engine
        self._entity = entity
        self._part = part

    @property
    def keyset_listing(self) -> bool:
        return self.inner.keyset_listing

    @property
    def can_read(self) -> bool:
        return self.inner.can_read

    @property
    def can_poll(self) -> bool:
        return self.inner.can_poll

    @property
    def can_list_keys(self) -> bool:
        return self.inner.can_list_keys

    @property
    def read_many_size(self) -> int:
        return self.inner.read_many_size

    @property
    def confirms_absence(self) -> bool:
        return True  # what is passed over is not among the rows of ``read_many``

    async def read(self, key: str) -> PartRead | None:
        row = await self.inner.read(key)
        if row is None or not row.passed_over:
            return row
        return next(iter(await self._select_rows([row])), row)

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        return await self._select_rows(await self.inner.read_many(keys))

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        async with aclosing(self.inner.pages(group, after)) as pages:  # type: ignore[type-var]
            async for rows, position in pages:
                yield await self._select_rows(rows), position

    async def keys(self, group: str) -> AsyncIterator[list[PartRead]]:
        async with aclosing(self.inner.keys(group)) as pages:  # type: ignore[type-var]
            async for rows in pages:
                yield await self._select_rows(rows)

    async def changes(self, since: int) -> AsyncIterator[list[PartRead]]:
        async with aclosing(self.inner.changes(since)) as pages:  # type: ignore[type-var]
            async for rows in pages:
                yield await self._select_rows(rows)

    async def open_transactions(self) -> OpenTransactions | None:
        return await self.inner.open_transactions()

    async def count(self, group: str) -> int | None:
        return await self.inner.count(group)

    async def groups(self) -> list[str] | None:
        return await self.inner.groups()

    async def ungrouped(self) -> Ungrouped | None:
        return await self.inner.ungrouped()

    async def close(self) -> None:
        await self.inner.close()

    async def _select_rows(self, rows: list[PartRead]) -> list[PartRead]:
        suspects = {row.key for row in rows if row.passed_over and row.key}
        if not suspects or self._engine is None:
            return [row for row in rows if not row.passed_over]
        known = await asyncio.to_thread(
            in_transaction,
            self._engine,
            lambda connection: list_known_keys(connection, self._entity, self._part, suspects),
        )
        return [
            replace(row, passed_over=False) if row.passed_over else row
            for row in rows
            if not row.passed_over or row.key in known
        ]
