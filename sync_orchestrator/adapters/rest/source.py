"""A source system behind a REST API, for one part of one entity."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from sync_orchestrator.adapters.concurrency import side_by_side
from sync_orchestrator.adapters.http.client import Http
from sync_orchestrator.adapters.rest.filter_check import Filters
from sync_orchestrator.adapters.rest.paging import get_all, get_count, get_list, pages
from sync_orchestrator.adapters.row_reader import asked_for, once_each
from sync_orchestrator.config import Get, Listing, Part
from sync_orchestrator.core.ports import PartRead, Ungrouped
from sync_orchestrator.core.values.names import NoName, alike, canonical_name, spellings, spelt_otherwise
from sync_orchestrator.core.values.source_versions import as_time, version_of
from sync_orchestrator.errors import CallFailed, Failure, Refusal
from sync_orchestrator.expressions.selectors import compiled
from sync_orchestrator.expressions.truth import NoTruth, condition


class RestSource:
    """Implements ``core.ports.SourceSystem``."""

    def __init__(self, http: Http, part: Part) -> None:
        self._http = http
        self._part = part
        self._key = compiled(part.key)
        self._version = compiled(part.version.path)
        self._group = compiled(part.group) if part.group else None
        self._deleted = condition(part.deleted_when) if part.deleted_when else None
        assert part.list is not None
        self._list = part.list
        self.keyset_listing = part.list.paging == "after"
        self._filters = Filters(http, part.filter_check)
        self.can_read = part.read is not None or part.read_many is not None
        self.can_poll = part.changes is not None
        self.can_list_keys = part.keys is not None

    async def read(self, key: str) -> PartRead | None:
        """The part of one record now; None for a 404, a 410, or where the answer says that there is nothing."""
        if self._part.read is None:
            return next(iter(await self.read_many([key])), None)
        for spelling in spellings(key):
            if items := await self._items(self._part.read, spelling):
                return self._asked_for(key, items)
        return None

    async def _items(self, call: Get, key: str) -> list[Any]:
        try:
            return await get_all(self._http, call, {"key": key}, key_of=self._key_of)
        except CallFailed as failure:
            if failure.refusal is Refusal.MISSING:
                return []
            raise

    def _asked_for(self, key: str, items: Sequence[Any]) -> PartRead | None:
        """The part of a key among what came for it; under another spelling of the key it cannot be used."""
        rows = once_each([self._row(item) for item in items])
        other = next((row.key for row in rows if row.key != key), None)
        if other is None:
            return next(iter(rows), None)
        if len(rows) == 1 and alike(other, key):
            return PartRead(key, 0, {}, problem=spelt_otherwise(other, key))
        raise self._http.garbage(f"asked for record {key}, another came", items[0])

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        """The parts of those keys that the source has, in chunks of ``read_many_size``.

        Keys with a comma are read one by one, since keys are mostly sent separated by commas.
        """
        single = [key for key in keys if self._part.read_many is None or "," in key]
        if single and self._part.read is None:
            raise CallFailed(Failure.PERMANENT, f"a key with a comma needs 'read': {single[0]}")
        together = [key for key in keys if self._part.read_many is not None and "," not in key]
        size = self._part.read_many_size
        chunks = [together[at : at + size] for at in range(0, len(together), size)]
        found = await side_by_side(self._http.concurrency, self._chunk, chunks)
        alone = await side_by_side(self._http.concurrency, self.read, single)
        return [row for rows in found for row in rows] + [row for row in alone if row is not None]

    async def _chunk(self, keys: Sequence[str]) -> list[PartRead]:
        assert self._part.read_many is not None
        wanted, values = set(keys), {"keys": [spelling for key in keys for spelling in spellings(key)]}
        rows = [
            self._row(item)
            async for items, _ in pages(self._http, self._part.read_many, values, key_of=self._key_of)
            for item in items
        ]
        if any(row.key not in wanted for row in rows):
            await self._filters.prove("read_many", self._part.read_many, values, "keys")
        return once_each(asked_for(keys, rows))

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        """Pages of a business group; with paging by key, ``after`` goes on behind that key.

        An item may belong to another group only if it says so itself. Raises CallFailed where it says nothing, and the
        listing is not by group.
        """
        async for rows, last in self._of_group("list", self._list, group, after):
            yield rows, last

    async def keys(self, group: str) -> AsyncIterator[list[PartRead]]:
        """Pages of the keys and versions of a business group, by the call ``keys`` where there is one."""
        async for rows, _ in self._of_group(
            *(("list", self._list) if self._part.keys is None else ("keys", self._part.keys)), group
        ):
            yield rows

    async def _of_group(
        self, name: str, listing: Listing, group: str, after: str | None = None
    ) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        values = {"group": group}
        seen: dict[int, tuple[int, int]] | None = None if listing.paging in ("none", "after") else {}
        async for items, last in pages(self._http, listing, values, key_of=self._key_of, after=after):
            rows = once_each([self._row(item, keys_only=listing is self._part.keys) for item in items])
            if self._group is not None and any(row.group is None and row.problem is None for row in rows):
                if "group" in listing.names():
                    await self._filters.prove(name, listing, values, "group")
                elif all(row.group is None for row in rows):
                    raise CallFailed(
                        Failure.PERMANENT,
                        (
                            f"no business group at '{self._part.group}', and '{name}' does not ask for one with "
                            "{{ group }}: " + self._http.shown(repr(items[0]))
                        ),
                    )
                else:  # it names the group of others: these have none, and hold up nothing else
                    rows = [self._grouped(row) for row in rows]
            yield rows if seen is None else [self._first_time(row, seen) for row in rows], last

    def _grouped(self, row: PartRead) -> PartRead:
        if row.group is not None or row.problem is not None:
            return row
        return PartRead(row.key, 0, {}, problem=f"no business group at '{self._part.group}'")

    def _first_time(self, row: PartRead, seen: dict[int, tuple[int, int]]) -> PartRead:
        """Spoils a row whose key an earlier page had under the same version with other content: it is not unique.

        Under another version it is a record that changed while the pages were read.
        """
        if row.problem is not None:
            return row
        now = row.version, hash(repr(row))
        before = seen.setdefault(hash(row.key), now)
        if before == now or before[0] != row.version:
            return row
        return PartRead(
            row.key,
            0,
            {},
            problem=f"the key is not unique: pages show rows with key {row.key} and one version, which differ",
        )

    async def changes(self, since: int) -> AsyncIterator[list[PartRead]]:
        """Pages of what has changed since a version, in whatever order the source gives them.

        Whether the very version itself is among it is the source's affair. Only where ``can_poll``.
        """
        assert self._part.changes is not None
        values: dict[str, Any] = {"since_number": since}
        if self._part.version.kind == "time":
            values["since"] = as_time(since)
        async for items, _ in pages(self._http, self._part.changes, values, key_of=self._key_of):
            yield await self._settled([self._row(item) for item in items])

    async def _settled(self, rows: list[PartRead]) -> list[PartRead]:
        """Rows of a key and one version that differ say nothing of which is present: the record is read by key.

        Where it cannot be read, the order in which the source gives them decides.
        """
        shown: dict[tuple[str, int], str] = {}
        unclear = [row.key for row in rows if shown.setdefault((row.key, row.version), repr(row)) != repr(row)]
        if not unclear or not self.can_read:
            return rows
        keys = sorted(set(unclear))
        return [row for row in rows if row.key not in unclear] + await self.read_many(keys)

    async def count(self, group: str) -> int | None:
        """How many records the group has there; None where no ``count`` is configured."""
        if self._part.count is None:
            return None
        return await get_count(self._http, self._part.count, {"group": group})

    async def groups(self) -> list[str] | None:
        """The business groups that exist; None where no ``groups`` is configured."""
        if self._part.groups is None:
            return None
        found = await get_list(self._http, self._part.groups, {})
        try:
            return [text for item in found if (text := canonical_name(item)) is not None]
        except NoName as error:
            raise CallFailed(
                Failure.PERMANENT,
                f"no business group in the response to 'groups': {error}; 'record' "
                "has to find a list of names, such as 'items[].name'",
            ) from None

    async def ungrouped(self) -> Ungrouped | None:
        """None: an API that lists by group does not show them."""
        return None

    async def close(self) -> None:
        """Closes the connections of the client."""
        await self._http.close()

    def _key_of(self, item: Any) -> str:
        try:
            key = canonical_name(self._http.search(self._key, item))
        except NoName as error:
            why = self._http.shown(str(error))
            raise CallFailed(Failure.PERMANENT, f"no key at '{self._part.key}': {why}") from None
        if key is None:
            raise CallFailed(Failure.PERMANENT, f"no key at '{self._part.key}': {self._http.shown(repr(item))}")
        return key

    def _row(self, item: Any, *, keys_only: bool = False) -> PartRead:
        if not isinstance(item, dict):
            raise self._http.garbage("an item of the source is not an object", item)
        key = self._key_of(item)
        try:
            version = version_of(self._http.search(self._version, item), self._part.version.kind, self._part.tz)
        except ValueError as error:
            return self._unusable(key, f"no version at '{self._part.version.path}'", str(error))
        try:
            deleted = self._deleted is not None and self._deleted.holds(item)
        except NoTruth as error:
            if not keys_only:  # which need not show the fields of the condition
                return self._unusable(key, "deleted_when", str(error))
            deleted = False
        value = self._http.search(self._group, item) if self._group else None
        try:
            group = None if isinstance(value, str) and not value.strip() else canonical_name(value)
        except NoName as error:
            return self._unusable(key, f"no business group at '{self._part.group}'", str(error))
        return PartRead(key, version, item, group, deleted)

    def _unusable(self, key: str, what: str, came: str) -> PartRead:
        """An item that stays unusable; the cause comes first, so that its alerts are grouped."""
        return PartRead(key, 0, {}, problem=f"{what}: {self._http.shown(came)}")
