"""A source system behind a REST API, for one part of one entity."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import jmespath

from sync_orchestrator.adapters.http import Http, filled, garbage
from sync_orchestrator.adapters.paging import pages
from sync_orchestrator.adapters.values import version_of
from sync_orchestrator.config import Get, Part
from sync_orchestrator.core.errors import CallFailed, Failure
from sync_orchestrator.core.events import group_text
from sync_orchestrator.core.ports import PartRead


class RestSource:
    """Implements ``core.ports.SourceSystem``."""

    def __init__(self, http: Http, part: Part) -> None:
        self._http = http
        self._part = part
        self._key = jmespath.compile(part.key)
        self._version = jmespath.compile(part.version.path)
        self._group = jmespath.compile(part.group) if part.group else None
        self._deleted = jmespath.compile(part.deleted_when) if part.deleted_when else None
        self.keyset_listing = part.list.paging == "after"
        self.can_read = part.read is not None or part.read_many is not None

    async def read(self, key: str) -> PartRead | None:
        """The part of one record now; None for a 404, 410 or an empty answer."""
        if self._part.read is None:
            return next(iter(await self.read_many([key])), None)
        try:
            item = await self._get(self._part.read, {"key": key})
        except CallFailed as failure:
            if failure.missing:
                return None
            raise
        return None if item is None else self._row(item)

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        """The parts of those keys that the source has, in chunks of ``read_many_size``."""
        if self._part.read_many is None:
            found = await asyncio.gather(*(self.read(key) for key in keys))
            return [row for row in found if row is not None]
        size = self._part.read_many_size
        chunks = await asyncio.gather(*(self._chunk(keys[at : at + size]) for at in range(0, len(keys), size)))
        return [row for chunk in chunks for row in chunk]

    async def _chunk(self, keys: Sequence[str]) -> list[PartRead]:
        assert self._part.read_many is not None
        wanted = set(keys)
        rows = [
            self._row(item)
            async for items, _ in pages(self._http, self._part.read_many, {"keys": ",".join(keys)}, key_of=self._key_of)
            for item in items
        ]
        return [row for row in rows if row.key in wanted]

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        """Pages of a business group; with paging by key, ``after`` goes on behind that key."""
        async for items, last in pages(self._http, self._part.list, {"group": group}, key_of=self._key_of, after=after):
            yield [self._row(item) for item in items], last

    async def count(self, group: str) -> int | None:
        """How many records the group has there; None where no ``count`` is configured."""
        if self._part.count is None:
            return None
        number = await self._get(self._part.count, {"group": group})
        if isinstance(number, bool) or not isinstance(number, int):
            raise garbage("no number where the count should be", number)
        return number

    async def groups(self) -> list[str] | None:
        """The business groups that exist; None where no ``groups`` is configured."""
        if self._part.groups is None:
            return None
        found = await self._get(self._part.groups, {})
        if not isinstance(found, list):
            raise garbage("no list where the business groups should be", found)
        return [text for item in found if (text := group_text(item)) is not None]

    async def close(self) -> None:
        await self._http.close()

    async def _get(self, call: Get, values: dict[str, str | None]) -> Any:
        params = {name: filled(value, values, in_path=False) for name, value in call.params.items()}
        document = await self._http.read(filled(call.path, values, in_path=True), params)
        return jmespath.search(call.record, document)

    def _key_of(self, item: Any) -> str:
        key = self._key.search(item)
        if key is None or isinstance(key, dict | list | bool) or key == "":
            raise CallFailed(Failure.PERMANENT, f"no key at '{self._part.key}' in an item of the source: {item!r:.200}")
        return str(key)

    def _row(self, item: Any) -> PartRead:
        if not isinstance(item, dict):
            raise garbage("an item of the source is not an object", item)
        key = self._key_of(item)
        try:
            version = version_of(self._version.search(item), self._part.version.kind)
        except ValueError as error:
            raise CallFailed(
                Failure.PERMANENT, f"record {key}: no version at '{self._part.version.path}': {error}") from None
        group = group_text(self._group.search(item)) if self._group else None
        return PartRead(key, version, item, group, bool(self._deleted and self._deleted.search(item)))
