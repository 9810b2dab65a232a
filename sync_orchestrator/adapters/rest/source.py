"""A source system behind a REST API, for one part of one entity."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from sync_orchestrator.adapters.concurrency import side_by_side
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.filter_check import Filters
from sync_orchestrator.adapters.rest.paging import get_all, get_count, get_list, list_pages
from sync_orchestrator.adapters.row_reader import once_each, pass_over, select_requested_rows
from sync_orchestrator.config import ListCallSettings, PartSettings, ReadCallSettings
from sync_orchestrator.core.ports import OpenTransactions, PartRead, Ungrouped
from sync_orchestrator.core.values.names import NoName, are_alike, canonical_name, list_spellings, spelt_otherwise
from sync_orchestrator.core.values.source_versions import as_time, version_of
from sync_orchestrator.errors import CallFailed, Failure, Refusal
from sync_orchestrator.expressions.selectors import compile_selector
from sync_orchestrator.expressions.truth import NoTruth, parse_condition


class RestSource:
    """Implements ``core.ports.SourceSystem``."""

    def __init__(self, http: HttpClient, part: PartSettings) -> None:
        self._http = http
        self._part = part
        self._key = compile_selector(part.key)
        self._version = compile_selector(part.version.path)
        self._group = compile_selector(part.group) if part.group else None
        self._deleted = parse_condition(part.deleted_when) if part.deleted_when else None
        self._only = parse_condition(part.only_when) if part.only_when else None
        assert part.list is not None
        self._list = part.list
        self.keyset_listing = part.list.paging == "after"
        self._filters = Filters(http, part.filter_check)
        self.can_read = part.read is not None or part.read_many is not None
        self.can_poll = part.changes is not None
        self.can_list_keys = part.keys is not None
        self.read_many_size = 1 if part.read_many is None else part.read_many_size
        self.confirms_absence = part.read is not None and part.read_many is not None

    async def read(self, key: str) -> PartRead | None:
        """The part of one record now; None for a 404, a 410, or where the answer says that there is nothing."""
        if self._part.read is None:
            return next(iter(await self.read_many([key])), None)
        for spelling in list_spellings(key):
            if items := await self._read_items(self._part.read, spelling):
                return self._select_requested_row(key, items)
        return None

    def _is_selected(self, item: object) -> bool:
        """Whether an item is a record, as far as that can be said."""
        try:
            return self._only is None or not isinstance(item, dict) or self._only.holds(item)
        except NoTruth:
            return True

    async def _read_items(self, call: ReadCallSettings, key: str) -> list[object]:
        try:
            return await get_all(self._http, call, {"key": key}, key_of=self._name_of)
        except CallFailed as failure:
            if failure.refusal is Refusal.MISSING:
                return []
            raise

    def _select_requested_row(self, key: str, items: Sequence[object]) -> PartRead | None:
        """The part of a key among what came for it; under another spelling of the key it cannot be used."""
        rows = [row for row in once_each([self._read_row(item) for item in items]) if row.key or not row.passed_over]
        other = next((row.key for row in rows if row.key != key), None)
        if other is None:
            return next(iter(rows), None)
        if len(rows) == 1 and are_alike(other, key):
            return PartRead(key, 0, {}, problem=spelt_otherwise(other, key))
        raise self._http.build_unusable_failure(f"asked for record {key}, another came", items[0])

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
        found = await side_by_side(self._http.concurrency, self._read_chunk, chunks)
        alone = await side_by_side(self._http.concurrency, self.read, single)
        return [row for rows in found for row in rows] + [row for row in alone if row is not None]

    async def _read_chunk(self, keys: Sequence[str]) -> list[PartRead]:
        assert self._part.read_many is not None
        wanted, values = set(keys), {"keys": [spelling for key in keys for spelling in list_spellings(key)]}
        read = [
            self._read_row(item)
            async for items, _ in list_pages(self._http, self._part.read_many, values, key_of=self._name_of)
            for item in items
        ]
        rows = [row for row in read if row.key or not row.passed_over]
        if any(row.key not in wanted for row in rows):
            await self._filters.prove_filters("read_many", self._part.read_many, values, "keys")
        return once_each(select_requested_rows(keys, rows))

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
        self, name: str, listing: ListCallSettings, group: str, after: str | None = None
    ) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        values = {"group": group}
        seen: dict[int, tuple[int, int]] | None = None if listing.paging in ("none", "after") else {}
        async for items, last in list_pages(self._http, listing, values, key_of=self._name_of, after=after):
            rows = once_each([self._read_row(item, keys_only=listing is self._part.keys) for item in items])
            if self._group is not None and any(map(_lacks_group, rows)):
                if "group" in listing.collect_template_names():
                    await self._filters.prove_filters(name, listing, values, "group")
                elif all(row.group is None or row.passed_over for row in rows):
                    raise CallFailed(
                        Failure.PERMANENT,
                        (
                            f"no business group at '{self._part.group}', and '{name}' does not ask for one with "
                            "{{ group }}: " + self._http.sanitize_text(repr(items[0]))
                        ),
                    )
                else:  # it names the group of others: these have none, and hold up nothing else
                    rows = [self._require_group(row) for row in rows]
            yield rows if seen is None else [self._first_time(row, seen) for row in rows], last

    def _require_group(self, row: PartRead) -> PartRead:
        if not _lacks_group(row):
            return row
        return PartRead(row.key, 0, {}, problem=f"no business group at '{self._part.group}'")

    def _first_time(self, row: PartRead, seen: dict[int, tuple[int, int]]) -> PartRead:
        """Spoils a row whose key an earlier page had under the same version with other content: it is not unique.

        Under another version it is a record that changed while the pages were read.
        """
        if row.problem is not None or row.passed_over:
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
        assert isinstance(self._part.changes, ListCallSettings)
        values: dict[str, Any] = {"since_number": since}
        if self._part.version.kind == "time":
            values["since"] = as_time(since)
        async for items, _ in list_pages(self._http, self._part.changes, values, key_of=self._name_of):
            yield await self._settle_unclear_rows([self._read_row(item) for item in items])

    async def open_transactions(self) -> OpenTransactions | None:
        """None: an API does not say which transactions are open behind it."""
        return None

    async def _settle_unclear_rows(self, rows: list[PartRead]) -> list[PartRead]:
        """Rows of a key and one version that differ say nothing of which is present: the record is read by key.

        Where it cannot be read, the order in which the source gives them decides.
        """
        shown: dict[tuple[str, int], str] = {}
        unclear = [
            row.key for row in rows if row.key and shown.setdefault((row.key, row.version), repr(row)) != repr(row)
        ]
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

    def _name_of(self, item: object) -> str:
        """The key by which a listing goes on, or tells items apart; an item that is no record may have none."""
        if not self._is_selected(item):
            assert isinstance(item, dict)
            return pass_over(self._http.search_document(self._key, item), None, self._part).key or repr(item)
        return self._key_of(item)

    def _key_of(self, item: object) -> str:
        try:
            key = canonical_name(self._http.search_document(self._key, item))
        except NoName as error:
            why = self._http.sanitize_text(str(error))
            raise CallFailed(Failure.PERMANENT, f"no key at '{self._part.key}': {why}") from None
        if key is None:
            raise CallFailed(Failure.PERMANENT, f"no key at '{self._part.key}': {self._http.sanitize_text(repr(item))}")
        return key

    def _read_row(self, item: object, *, keys_only: bool = False) -> PartRead:
        if not isinstance(item, dict):
            raise self._http.build_unusable_failure("an item of the source is not an object", item)
        try:
            if self._only is not None and not self._only.holds(item):
                return self._pass_over(item)
        except NoTruth as error:
            return self._build_unusable_part(self._pass_over(item).key, "only_when", str(error))
        key = self._key_of(item)
        try:
            kind = self._part.version.kind
            assert kind != "log"  # it has no log
            version = version_of(self._http.search_document(self._version, item), kind, self._part.tz)
        except ValueError as error:
            return self._build_unusable_part(key, f"no version at '{self._part.version.path}'", str(error))
        try:
            deleted = self._deleted is not None and self._deleted.holds(item)
        except NoTruth as error:
            if not keys_only:  # which need not show the fields of the condition
                return self._build_unusable_part(key, "deleted_when", str(error))
            deleted = False
        value = self._http.search_document(self._group, item) if self._group else None
        try:
            group = None if isinstance(value, str) and not value.strip() else canonical_name(value)
        except NoName as error:
            return self._build_unusable_part(key, f"no business group at '{self._part.group}'", str(error))
        return PartRead(key, version, item, group, deleted)

    def _pass_over(self, item: dict[str, Any]) -> PartRead:
        search = self._http.search_document
        return pass_over(search(self._key, item), search(self._version, item), self._part)

    def _build_unusable_part(self, key: str, what: str, came: str) -> PartRead:
        """An item that stays unusable; the cause comes first, so that its alerts are grouped."""
        return PartRead(key, 0, {}, problem=f"{what}: {self._http.sanitize_text(came)}")


def _lacks_group(row: PartRead) -> bool:
    """Whether a record names no business group."""
    return row.group is None and row.problem is None and not row.passed_over
