"""What a third party holds: one record by its address, every record with a key, everything in a business group.

What it calls deleted (``gone_when``) is left out, but for what writing needs to know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from sync_orchestrator.adapters.concurrency import side_by_side
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.prepared_calls import Values
from sync_orchestrator.adapters.http.responses import Answer
from sync_orchestrator.adapters.rest.filter_check import Filters
from sync_orchestrator.adapters.rest.paging import get_count, get_record, list_pages, record_in
from sync_orchestrator.adapters.rest.records import Records
from sync_orchestrator.adapters.rest.references import References
from sync_orchestrator.config import ReadCallSettings, TargetSettings
from sync_orchestrator.core.ports import Found, Item, Json
from sync_orchestrator.errors import CallFailed, Refusal
from sync_orchestrator.expressions.selectors import compile_selector


@dataclass(frozen=True, slots=True)
class Present:
    """A record as it is there now, with its revision; ``gone``: it is deleted, and still shown."""

    record: Json
    revision: Any
    gone: bool


class Reads:
    """The reading calls of one target. Each may raise CallFailed."""

    def __init__(self, http: HttpClient, target: TargetSettings, records: Records, references: References) -> None:
        assert target.read is not None
        assert target.list is not None
        self._http = http
        self._target = target
        self._records = records
        self._references = references
        self._filters = Filters(http, target.filter_check)
        self._read = target.read
        self._list = target.list
        revision = target.revision
        self._revision_header = revision.header.lower() if revision and revision.header else None
        self._revision = compile_selector(revision.path) if revision and revision.path else None

    async def read_present(self, item: Item) -> Present | None:
        """The record at an item's address, deleted or not; None where there is none."""
        return await self._read_present(self._records.build_address(item))

    async def read(self, item: Item) -> Found | None:
        """The record at an item's address, or None."""
        record = await self._whole_by_id(self._records.build_address(item))
        return None if record is None else self._records.to_found(record)

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        """Every record that carries our key."""
        records = await self._search_by_key(key, group)
        return [self._records.to_found(record) for record in await self._each_with_more(records, group)]

    async def find_same(self, values: Values) -> list[Found]:
        """Every record that may be the same as one that is about to be made, of which templates know ``values``."""
        call, outcomes = self._target.find_same, self._target.outcomes
        assert call is not None
        known = await self._references.add_references(call, values)
        found = [
            record
            async for records, _ in list_pages(self._http, call, known, key_of=self._records.id_of, outcomes=outcomes)
            for record in records
        ]
        return [self._records.to_found(record) for record in found if not self._records.is_gone(record)]

    async def find_tombstones(self, key: str, group: str | None) -> list[str]:
        """The ids of deleted records that carry our key, in order; none where one that carries it is not deleted."""
        records = await self._search_by_key(key, group)
        if not all(self._records.is_gone(record) for record in records):
            return []
        return sorted(self._records.id_of(record) for record in records)

    async def pages(self, group: str) -> AsyncIterator[list[Found]]:
        """Everything in a business group, page by page."""
        listing, outcomes = self._list, self._target.outcomes
        values = await self._references.add_references(listing, {"group": group})
        by_id = self._target.list_shows == "ids"
        key_of = self._records.id_of if by_id else self._records.key_of
        async for records, _ in list_pages(self._http, listing, values, key_of=key_of, outcomes=outcomes):
            await self._filters.prove_filters(
                "list", listing, values, "group", *self._target.references, outcomes=outcomes
            )
            whole = self._each_by_id if by_id else self._each_with_more
            yield [self._records.to_found(record) for record in await whole(records, group)]

    async def count(self, group: str) -> int | None:
        """How many records are in a business group; None where no ``count`` is configured."""
        count, outcomes = self._target.count, self._target.outcomes
        if count is None:
            return None
        values = await self._references.add_references(count, {"group": group})
        if number := await get_count(self._http, count, values, outcomes):
            await self._filters.prove_filters(
                "count", count, values, "group", *self._target.references, outcomes=outcomes
            )
        return number

    async def _search_by_key(self, key: str, group: str | None) -> list[object]:
        """Every record with our key as the search shows it, deleted ones too."""
        lookup, outcomes = self._target.lookup, self._target.outcomes
        assert lookup is not None
        values = await self._references.add_references(lookup, {"key": key, "group": group})
        found = [
            record
            async for records, _ in list_pages(
                self._http, lookup, values, key_of=self._records.key_of, outcomes=outcomes
            )
            for record in records
        ]
        if found:
            await self._filters.prove_filters("lookup", lookup, values, "key", outcomes=outcomes)
        return [record for record in found if self._records.to_found(record).key == key]

    async def _read_present(self, address: Values) -> Present | None:
        try:
            values = await self._references.add_references(self._read, address)
            answer = await self._http.read(self._read, values, self._target.outcomes)
            record = record_in(self._http, self._read, answer)
        except CallFailed as failure:
            if failure.refusal is Refusal.MISSING:
                return None
            raise
        if record is None:
            return None
        if not isinstance(record, dict):
            raise self._http.build_unusable_failure("a record of the third party is not an object", record)
        return Present(record, self._revision_in(answer, record), self._records.is_gone(record))

    def _revision_in(self, answer: Answer, record: Json) -> object:
        if self._revision_header is not None:
            return answer.headers.get(self._revision_header)
        return self._http.search_document(self._revision, record) if self._revision else None

    async def _whole_by_id(self, address: Values) -> Json | None:
        """A record with all that it is read by; None where it is not there, or deleted."""
        present = await self._read_present(address)
        return None if present is None or present.gone else await self._with_more(present.record, address)

    async def _with_more(self, record: Json, address: Values) -> Json:
        """The record with what more calls find of it, each under its name."""
        more = {name: await self._read_more(call, address) for name, call in self._target.also.items()}
        return {**record, **more}

    async def _read_more(self, call: ReadCallSettings, address: Values) -> object:
        try:
            values = await self._references.add_references(call, address)
            return await get_record(self._http, call, values, self._target.outcomes)
        except CallFailed as failure:
            if failure.refusal is Refusal.MISSING:
                return None
            raise

    async def _each_by_id(self, listed: Sequence[object], group: str) -> list[Json]:
        """What is behind the ids of a page; what has gone meanwhile is left out."""
        addresses = [self._build_address(record, group) for record in listed]
        found = await side_by_side(self._http.concurrency, self._whole_by_id, addresses)
        return [record for record in found if record is not None]

    async def _each_with_more(self, listed: Sequence[object], group: str | None) -> list[object]:
        """The records of a page that are not deleted, each with what more calls find of it."""
        alive = [record for record in listed if not self._records.is_gone(record)]
        if not self._target.also:
            return alive

        async def with_more(record: Any) -> Json:
            return await self._with_more(record, self._build_address(record, group))

        return await side_by_side(self._http.concurrency, with_more, alive)

    def _build_address(self, record: object, group: str | None) -> dict[str, object]:
        """What templates know of a record's place that a listing shows; the key only where it shows that."""
        key = self._records.key_in(record)
        return {"id": self._records.id_of(record), "group": group, **({} if key is None else {"key": key})}
