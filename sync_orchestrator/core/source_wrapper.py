"""A source system around another one, for what holds whatever the adapter is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from sync_orchestrator.core.ports import OpenTransactions, PartRead, SourceSystem, Ungrouped


class SourceWrapper:
    """Passes all calls on to another source system. Implements ``core.ports.SourceSystem``.

    A subclass says what is done before each call (``prepare_call``) or with the rows of each (``select_rows``).
    """

    def __init__(self, inner: SourceSystem) -> None:
        self.inner = inner

    async def prepare_call(self) -> None:
        """Called before each call of the source, and before each further page. Raises CallFailed."""

    async def select_rows(self, rows: list[PartRead]) -> list[PartRead]:
        """Called with the rows of each answer; what it returns is passed on."""
        return rows

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
        return self.inner.confirms_absence

    async def read(self, key: str) -> PartRead | None:
        await self.prepare_call()
        row = await self.inner.read(key)
        return None if row is None else next(iter(await self.select_rows([row])), None)

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        await self.prepare_call()
        return await self.select_rows(await self.inner.read_many(keys))

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        await self.prepare_call()
        async with aclosing(self.inner.pages(group, after)) as pages:  # type: ignore[type-var]
            async for rows, position in pages:
                yield await self.select_rows(rows), position
                await self.prepare_call()

    async def keys(self, group: str) -> AsyncIterator[list[PartRead]]:
        await self.prepare_call()
        async with aclosing(self.inner.keys(group)) as pages:  # type: ignore[type-var]
            async for rows in pages:
                yield await self.select_rows(rows)
                await self.prepare_call()

    async def changes(self, since: int) -> AsyncIterator[list[PartRead]]:
        await self.prepare_call()
        async with aclosing(self.inner.changes(since)) as pages:  # type: ignore[type-var]
            async for rows in pages:
                yield await self.select_rows(rows)
                await self.prepare_call()

    async def open_transactions(self) -> OpenTransactions | None:
        return await self.inner.open_transactions()

    async def count(self, group: str) -> int | None:
        await self.prepare_call()
        return await self.inner.count(group)

    async def groups(self) -> list[str] | None:
        await self.prepare_call()
        return await self.inner.groups()

    async def ungrouped(self) -> Ungrouped | None:
        await self.prepare_call()
        return await self.inner.ungrouped()

    async def close(self) -> None:
        await self.inner.close()
